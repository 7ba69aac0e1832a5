"""Prompts as people put them to a chat model, and a batch of prompts continued: by generate(), or
sampled in a loop of our own. generate() sorts the whole vocabulary for every token and goes on with
rows that have ended; the loop is three times as fast for a small model.

Legend: B prompts, T tokens, V vocabulary.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from transformers import DynamicCache

_CANDIDATES = 512  # most probable tokens that one is drawn from
_ENDED = 0.25  # share of the rows: computed on until so many have ended


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
    ids, mask, pad = _padded(model, rows, ends)
    output: Tensor = model.eval().generate(
        input_ids=ids, attention_mask=mask, max_new_tokens=new_tokens, eos_token_id=ends or None,
        pad_token_id=pad, **options,
    )  # fmt: skip
    return [_until_end(row, ends) for row in output[:, ids.shape[1] :].tolist()]


@torch.no_grad()
def sampled(
    model: Any, rows: list[list[int]], ends: list[int], new_tokens: int, top_p: float
) -> list[list[int]]:
    """New token ids behind each prompt, up to and with the first of `ends`, each drawn from the
    most probable tokens that together hold the probability `top_p`.
    """
    ids, mask, _ = _padded(model.eval(), rows, ends)
    written: list[list[int]] = [[] for _ in rows]
    cache, numbers = DynamicCache(config=model.config), list(range(len(rows)))  # of the rows left
    stops = torch.tensor(ends, device=ids.device)
    going = torch.ones(len(rows), dtype=torch.bool, device=ids.device)
    for _ in range(new_tokens):
        positions = (mask.cumsum(1) - 1).clamp(min=0)[:, -ids.shape[1] :]
        logits = model(
            input_ids=ids, attention_mask=mask, position_ids=positions, past_key_values=cache,
            use_cache=True, logits_to_keep=1,
        ).logits[:, -1]  # fmt: skip
        ids = _drawn(logits.float(), top_p)
        for number, token, goes in zip(numbers, ids[:, 0].tolist(), going.tolist(), strict=True):
            if goes:
                written[number].append(token)
        going &= ~torch.isin(ids[:, 0], stops)
        left = int(going.sum())
        if not left:
            break
        if left <= (1 - _ENDED) * len(numbers):
            kept = going.nonzero()[:, 0]
            cache.reorder_cache(kept)  # type: ignore[arg-type]
            numbers = [numbers[i] for i in kept.tolist()]
            ids, mask, going = ids[kept], mask[kept], going[kept]
        mask = torch.cat([mask, torch.ones_like(ids)], 1)
    return written


def _drawn(logits: Tensor, top_p: float) -> Tensor:
    """A token (B, 1) of logits (B, V)."""
    best, candidates = logits.topk(min(_CANDIDATES, logits.shape[1]))
    probability = (best - logits.logsumexp(1, keepdim=True)).exp()
    before = probability.cumsum(1) - probability  # of the more probable ones
    chosen = probability.masked_fill(before >= top_p, 0).multinomial(1)
    return candidates.gather(1, chosen)


def _padded(model: Any, rows: list[list[int]], ends: list[int]) -> tuple[Tensor, Tensor, int]:
    """Ids (B, T) with padding before the shorter rows, their mask, and the padding's id."""
    device = next(model.parameters()).device
    widest, pad = max(len(row) for row in rows), ends[0] if ends else 0
    ids = torch.tensor([[pad] * (widest - len(row)) + row for row in rows], device=device)
    mask = torch.tensor([[0] * (widest - len(row)) + [1] * len(row) for row in rows], device=device)
    return ids, mask, pad


def _until_end(ids: list[int], ends: list[int]) -> list[int]:
    return next((ids[: at + 1] for at, token in enumerate(ids) if token in ends), ids)
