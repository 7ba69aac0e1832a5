"""Needle in a haystack: a code is hidden in a long text, at several depths, and asked for at its
end. It is found where every token of the code is the most likely one, so that greedy decoding would
write it.

Legend: N texts, T tokens.
"""

from __future__ import annotations

import random
from typing import Any

import torch
from torch import Tensor

LENGTHS = (1024, 2048, 4096, 8192)  # tokens, as far as a model reaches
DEPTHS = (0.1, 0.3, 0.5, 0.7, 0.9)  # where the needle is, as a share of the text before it
_THINGS = ("red door", "old safe", "north gate", "blue box", "garden shed")


@torch.no_grad()
def needles(
    models: list[Any], tokenizer: Any, text: Tensor, lengths: tuple[int, ...],
    depths: tuple[float, ...] = DEPTHS, seed: int = 0,
) -> list[dict[str, Any]]:  # fmt: skip
    """For each length that the models reach, how many of the needles each of them finds; the
    haystack is `text`, token ids (T,), over and over.
    """
    reach = min(model.config.max_position_embeddings for model in models)
    draw, rows = random.Random(seed), []
    for length in lengths:
        if length > reach:
            break
        found = [0] * len(models)
        for depth in depths:
            thing, code = draw.choice(_THINGS), str(draw.randrange(10_000, 100_000))
            ids, answer = _haystack(tokenizer, text, length, depth, thing, code)
            for number, model in enumerate(models):
                found[number] += _finds(model, ids, answer)
        rows.append({"tokens": length, "needles": len(depths), "found": found})
    return rows


def _haystack(
    tokenizer: Any, text: Tensor, length: int, depth: float, thing: str, code: str
) -> tuple[Tensor, Tensor]:
    """Token ids (T,) of a text that ends with the question and its answer, and the answer."""

    def ids(words: str) -> Tensor:
        given = tokenizer(words, add_special_tokens=False)["input_ids"]
        return torch.tensor(given, dtype=torch.int64)

    question = f"\nThe code of the {thing} is"
    needle, asked, answer = ids(f"{question} {code}.\n"), ids(question), ids(f" {code}")
    room = length - len(needle) - len(asked) - len(answer)
    hay = text.repeat(-(-room // len(text)))[:room]
    at = int(depth * room)
    return torch.cat([hay[:at], needle, hay[at:], asked, answer]), answer


def _finds(model: Any, ids: Tensor, answer: Tensor) -> bool:
    """Whether a model writes the answer that ids end with."""
    given = ids[None, :-1].to(model.device)
    logits = model.eval()(input_ids=given, use_cache=False, logits_to_keep=len(answer)).logits
    return bool(torch.equal(logits[0, -len(answer) :].argmax(-1).cpu(), answer))
