"""Prompts as people put them to a chat model, and a batch of prompts continued by generate().

Legend: B prompts, T tokens.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor


def ends_of(model: Any, tokenizer: Any) -> list[int]:
    """Tokens that end a text of a model."""
    told = [model.generation_config.eos_token_id, tokenizer.eos_token_id]
    flat = [i for one in told for i in (one if isinstance(one, list) else [one])]
    return sorted({int(i) for i in flat if i is not None})


def prompt_of(tokenizer: Any, words: str) -> str:
    """A user's words in the chat template, up to where the answer begins."""
    message = [{"role": "user", "content": words}]
    return str(tokenizer.apply_chat_template(message, tokenize=False, add_generation_prompt=True))


@torch.no_grad()
def continued(
    model: Any, rows: list[list[int]], ends: list[int], new_tokens: int, **options: Any
) -> list[list[int]]:
    """New token ids behind each prompt, up to and with the first of `ends`; `options` are those of
    generate().
    """
    device = next(model.parameters()).device
    widest = max(len(row) for row in rows)
    pad = ends[0] if ends else 0
    ids = torch.tensor([[pad] * (widest - len(row)) + row for row in rows], device=device)
    mask = torch.tensor([[0] * (widest - len(row)) + [1] * len(row) for row in rows], device=device)
    output: Tensor = model.eval().generate(
        input_ids=ids, attention_mask=mask, max_new_tokens=new_tokens, eos_token_id=ends or None,
        pad_token_id=pad, **options,
    )  # fmt: skip
    return [_until_end(row, ends) for row in output[:, widest:].tolist()]


def _until_end(ids: list[int], ends: list[int]) -> list[int]:
    return next((ids[: at + 1] for at, token in enumerate(ids) if token in ends), ids)
