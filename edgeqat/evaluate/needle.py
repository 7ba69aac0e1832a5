"""Needle in a haystack: a code is hidden in a long text, at several depths, and asked for at its
end. It is found where every token of the code is the most likely one, so that greedy decoding would
write it.

The texts are one haystack up to their needles. Read from the deepest needle to the first, they cost
that haystack once and what stands behind each needle.

Legend: T tokens.
"""

from __future__ import annotations

import logging
import random
from collections.abc import Sequence
from typing import Any, NamedTuple

from edgeqat.evaluate.reader import Reader

logger = logging.getLogger(__name__)

LENGTHS = (1024, 2048, 4096, 8192)  # tokens, as far as a model reaches
DEPTHS = (0.1, 0.3, 0.5, 0.7, 0.9)  # where the needle is, as a share of the text before it
_THINGS = ("red door", "old safe", "north gate", "blue box", "garden shed")
_TOLD = 5  # texts between two lines of progress


class Haystack(NamedTuple):
    """A text (T,) that ends with the question and its answer; its needle stands at `place`."""

    length: int
    place: int
    ids: list[int]
    answer: list[int]


def needles(
    models: Sequence[Reader], tokenizer: Any, text: Sequence[int], lengths: tuple[int, ...],
    depths: tuple[float, ...] = DEPTHS, seed: int = 0,
) -> list[dict[str, Any]]:  # fmt: skip
    """For each length that the models reach, how many of the needles each of them finds; the
    haystack is `text`, token ids (T,), over and over.
    """
    reach = min(model.positions for model in models)
    lengths = tuple(length for length in lengths if length <= reach)
    draw, texts = random.Random(seed), []
    for length in lengths:
        for depth in depths:
            thing, code = draw.choice(_THINGS), str(draw.randrange(10_000, 100_000))
            texts.append(_haystack(tokenizer, text, length, depth, thing, code))
    texts.sort(key=lambda one: -one.place)
    found = {length: [0] * len(models) for length in lengths}
    for number, model in enumerate(models):
        for count, one in enumerate(texts, 1):
            found[one.length][number] += _finds(model, one)
            if count % _TOLD == 0:
                logger.info("needles: %s, %d of %d texts", model.name, count, len(texts))
    return [
        {"tokens": length, "needles": len(depths), "found": found[length]} for length in lengths
    ]


def _haystack(
    tokenizer: Any, text: Sequence[int], length: int, depth: float, thing: str, code: str
) -> Haystack:
    def ids(words: str) -> list[int]:
        return list(tokenizer(words, add_special_tokens=False)["input_ids"])

    question = f"\nThe code of the {thing} is"
    needle, asked, answer = ids(f"{question} {code}.\n"), ids(question), ids(f" {code}")
    room = length - len(needle) - len(asked) - len(answer)
    hay = (list(text) * -(-room // len(text)))[:room]
    place = int(depth * room)
    return Haystack(length, place, [*hay[:place], *needle, *hay[place:], *asked, *answer], answer)


def _finds(model: Reader, text: Haystack) -> bool:
    """Whether a model writes the answer that a text ends with."""
    logits = model.rows(text.ids[:-1], len(text.answer))
    return logits.argmax(-1).tolist() == text.answer
