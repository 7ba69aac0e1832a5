"""Whether a quantized chat model still talks like the float one: greedy answers of both to the same
prompts, side by side.

    same start   share of answers whose first 32 tokens are the float model's
    ends         share that ends by itself before the limit
    loops        share in which some 8 tokens in a row come three times
    KL           to the float model on the float model's answers, in nats a token

Legend: N prompts, T tokens, V vocabulary.
"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Sequence
from typing import Any

import torch

from edgeqat.errors import UsageError
from edgeqat.evaluate.chat_prompts import PROMPTS
from edgeqat.evaluate.reader import Reader, TorchReader
from edgeqat.hf.continuation import ends_of, prompt_of
from edgeqat.losses.distill import distill

logger = logging.getLogger(__name__)

START, GRAM, TIMES = 32, 8, 3
NEW_TOKENS = 160


def chat(
    model: Reader, floating: TorchReader, tokenizer: Any, prompts: Sequence[str] = PROMPTS,
    new_tokens: int = NEW_TOKENS,
) -> dict[str, Any]:  # fmt: skip
    """Scores of a model's answers and of the float model's, and the answers themselves."""
    if not tokenizer.chat_template:
        raise UsageError(
            "tasks: 'chat' needs a chat template, and the model's tokenizer has none; leave it out"
        )
    texts = [prompt_of(tokenizer, words) for words in prompts]
    asked = tokenizer(texts, add_special_tokens=False)["input_ids"]
    ends = ends_of(floating.model, tokenizer)
    if not ends:
        raise UsageError("tasks: 'chat' needs a token that ends an answer; the model has none")
    given = []
    for one in (model, floating):
        logger.info("chat: %s answers %d prompts", one.name, len(prompts))
        given.append(one.answers(asked, ends, new_tokens))
    logger.info("chat: KL on the float model's answers")
    starts = [own[:START] == other[:START] for own, other in zip(*given, strict=True)]
    told = [[str(tokenizer.decode(ids)) for ids in one] for one in given]
    return {
        "prompts": len(prompts),
        "new_tokens": new_tokens,
        "same_start": sum(starts) / len(starts),
        "kl": _divergence(model, floating, asked, given[1]),
        "model": _habits(given[0], ends),
        "float": _habits(given[1], ends),
        "answers": [
            {"prompt": words, "model": own, "float": other}
            for words, own, other in zip(prompts, *told, strict=True)
        ],
    }


def loops(ids: list[int]) -> bool:
    """Whether some tokens in a row come again and again."""
    grams = Counter(tuple(ids[at : at + GRAM]) for at in range(len(ids) - GRAM + 1))
    return max(grams.values(), default=0) >= TIMES


def _habits(given: list[list[int]], ends: list[int]) -> dict[str, float]:
    count = len(given)
    return {
        "ends": sum(ids[-1] in ends for ids in given if ids) / count,
        "loops": sum(map(loops, given)) / count,
        "tokens": sum(map(len, given)) / count,
    }


@torch.no_grad()
def _divergence(
    model: Reader, floating: Reader, prompts: list[list[int]], given: list[list[int]]
) -> float:
    """KL of a model to the float one where each token of the float answers is predicted."""
    total, count = 0.0, 0
    for prompt, answer in zip(prompts, given, strict=True):
        if not answer:
            continue
        ids = [*prompt, *answer][:-1]
        taught, logits = (one.rows(ids, len(answer)) for one in (floating, model))
        rows = min(taught.shape[1], logits.shape[1])
        kl = distill(logits[:, :rows], taught[:, :rows], torch.tensor(answer), 1.0)[2]
        total += float(kl) * len(answer)
        count += len(answer)
    return total / max(count, 1)
