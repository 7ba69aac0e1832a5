"""A model as a reader of texts, float or packed, in torch or on the engine.

    rows      logits behind the last tokens of a text; what it begins with like the text before is
              not read again
    answers   greedy answers to prompts, each with the token that ends it

Legend: T tokens, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

import torch
from torch import Tensor

from edgeqat.families import window_of
from edgeqat.hf.continuation import continued
from edgeqat.hf.kv_cache import new_cache
from edgeqat.nn.layers import attentions
from edgeqat.runtime.engine import Engine
from edgeqat.runtime.sequence import Sequence as EngineSequence
from edgeqat.runtime.sequence import shared_length

BATCH = 50  # prompts answered at once by torch
_TOKENS = 1024  # of a text in one pass: a later one does not look at what is behind it
Ids = Sequence[int]


class Reader(Protocol):
    """`name` says what computes, `positions` is the longest text."""

    name: str
    positions: int

    def rows(self, ids: Ids, count: int) -> Tensor:
        """Logits (count, V) behind the last `count` tokens of a text."""

    def answers(self, prompts: Sequence[Ids], ends: Ids, new_tokens: int) -> list[list[int]]:
        """Greedy answers of at most so many tokens; `ends` are the tokens that end one."""

    def close(self) -> None:
        """Free what it holds."""


class TorchReader:
    """A model of transformers; `bf16` takes products in bf16."""

    def __init__(self, model: Any, name: str = "float", bf16: bool = False) -> None:
        self.model, self.name, self.bf16 = model.eval(), name, bf16
        self.positions: int = model.config.max_position_embeddings
        quantizers = [getattr(a, "attention_quantizer", None) for _, a in attentions(model)]
        revises = any(one.revises for one in quantizers if one is not None)
        layers = range(model.config.num_hidden_layers)
        windows = any(window_of(model.config, layer) is not None for layer in layers)
        states = "conv" in (getattr(model.config, "layer_types", None) or ())
        self._goes_back = not (revises or windows or states)
        self._ids: list[int] = []
        self._cache: Any = None

    @torch.no_grad()
    def rows(self, ids: Ids, count: int) -> Tensor:
        """A text of which all logits are wanted is read in one pass, as it is trained on."""
        with torch.autocast("cpu", torch.bfloat16, enabled=self.bf16):
            if count < len(ids) and self._goes_back:
                return self._continued(list(ids), count)
            whole = torch.tensor([list(ids)], device=self.model.device)
            output = self.model(input_ids=whole, use_cache=False, logits_to_keep=count)
            return output.logits[0, -count:]

    def _continued(self, ids: list[int], count: int) -> Tensor:
        if self._cache is None:
            self._cache = new_cache(self.model)
        keep = min(shared_length(self._ids, ids), len(ids) - count)
        if keep < len(self._ids):
            self._cache.crop(keep - len(self._ids))
        logits: list[Tensor] = []
        for start in range(keep, len(ids), _TOKENS):
            part = ids[start : start + _TOKENS]
            wanted = min(len(part), max(0, start + len(part) - (len(ids) - count)))
            output = self.model(
                input_ids=torch.tensor([part], device=self.model.device),
                past_key_values=self._cache,
                use_cache=True,
                logits_to_keep=max(wanted, 1),
            )
            if wanted:
                logits.append(output.logits[0, -wanted:])
        self._ids = ids
        return torch.cat(logits)

    def answers(self, prompts: Sequence[Ids], ends: Ids, new_tokens: int) -> list[list[int]]:
        greedy = {"do_sample": False, "num_beams": 1, "repetition_penalty": 1.0}
        answers: dict[int, list[int]] = {}
        order = sorted(range(len(prompts)), key=lambda number: len(prompts[number]))
        for start in range(0, len(order), BATCH):
            part = order[start : start + BATCH]
            given = [list(prompts[number]) for number in part]
            answers |= zip(
                part, continued(self.model, given, list(ends), new_tokens, **greedy), strict=True
            )
        return [answers[number] for number in range(len(prompts))]

    def close(self) -> None:
        self._cache, self._ids = None, []


class EngineReader:
    """A packed folder on the C++ engine."""

    name = "native"

    def __init__(self, engine: Engine) -> None:
        self.engine, self.positions = engine, engine.context
        self._sequence = EngineSequence(engine)

    def rows(self, ids: Ids, count: int) -> Tensor:
        return torch.from_numpy(self._sequence.rows(ids, count))

    def answers(self, prompts: Sequence[Ids], ends: Ids, new_tokens: int) -> list[list[int]]:
        return [self._answer(prompt, ends, new_tokens) for prompt in prompts]

    def _answer(self, prompt: Ids, ends: Ids, new_tokens: int) -> list[int]:
        logits = self._sequence.rows(prompt, 1)[0]
        answer: list[int] = []
        while True:
            answer.append(int(logits.argmax()))
            if answer[-1] in ends or len(answer) == new_tokens:
                return answer
            logits = self._sequence.decode(answer[-1])

    def close(self) -> None:
        self.engine.close()
