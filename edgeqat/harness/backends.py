"""What computes log-likelihoods and text for tasks: four backends behind one interface.

    float        the float model, torch
    fake-quant   the packed folder with dequantized weights, torch: what training saw, bit for bit
    packed       the packed folder on its integers, torch: the arithmetic of the kernels
    native       the packed folder on the C++ engine, one sequence at a time

Sequences that begin alike are computed once up to where they part (harness/prefixes): the torch
backends keep that part in their cache, the engine goes back to it.

Legend: B batch, T tokens, V vocabulary.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from edgeqat import checkpoint, native
from edgeqat.errors import UsageError, nearest
from edgeqat.harness.prefixes import Batch, Ids, batches
from edgeqat.hf import float_model, image_folder, packed_folder
from edgeqat.hf.generation import Stops, reset_generation_config
from edgeqat.hf.kv_cache import new_cache
from edgeqat.nn.layers import attentions
from edgeqat.recipe import files as recipes
from edgeqat.runtime.engine import Engine
from edgeqat.runtime.sampling import Sampling
from edgeqat.runtime.sequence import Sequence as EngineSequence
from edgeqat.runtime.sequence import shared_length

FLOAT, FAKE_QUANT, PACKED, NATIVE = BACKENDS = ("float", "fake-quant", "packed", "native")
_LOGITS_AT_ONCE = 1 << 26
_ROWS = 64  # rows of logits whose sums stay in a core's cache
Step = Callable[[int], Any]


class Backend(ABC):
    """A model ready to be asked, with its tokenizer. `positions` is its longest sequence,
    `batch_size` how many it computes at once.
    """

    name: str
    tokenizer: Any
    positions: int
    batch_size: int
    facts: dict[str, Any]

    @abstractmethod
    def score(
        self, sequences: Sequence[Ids], counts: Sequence[int], step: Step = lambda done: None
    ) -> list[tuple[float, bool]]:
        """For each sequence the log-probability of its last `count` tokens, and whether each of
        them is the most likely one. step(n) is called when n more are done.
        """

    @abstractmethod
    def generate(
        self, prompts: Sequence[Ids], limit: int, stops: list[str], sampling: Sampling
    ) -> list[list[int]]:
        """Tokens that continue each prompt, up to `limit`, to an end of text or to one of the
        strings `stops`, which may be part of what is given.
        """

    @abstractmethod
    def close(self) -> None:
        """Free what the backend holds."""


def open_backend(
    name: str, model: str, batch_size: int = 64, threads: int | None = None
) -> Backend:
    """A backend on a packed folder, or on a float model for `float`; of a packed folder `float`
    takes the model that its recipe names. Raises an EdgeQATError in one line.
    """
    if name not in BACKENDS:
        raise UsageError(f"backend: '{name}' is unknown; {nearest(name, list(BACKENDS))}")
    if threads is not None:
        torch.set_num_threads(threads)
    folder = Path(model)
    if checkpoint.is_packed(folder) and image_folder.is_image_folder(
        checkpoint.read_config(folder)
    ):
        raise UsageError(f"tasks: '{model}' is an image classifier; leave out --tasks")
    if name == FLOAT:
        named, weights = _float_name(model)
        floating = float_model.load_model(named, weights).eval()
        return Torch(name, floating, float_model.load_tokenizer(named), batch_size)
    checkpoint.verify(folder)
    tokenizer = packed_folder.load_tokenizer(folder)
    if name == NATIVE:
        return Native(folder, tokenizer, threads)
    packed = packed_folder.load(folder, integer=name == PACKED, verify=False)
    return Torch(name, packed, tokenizer, batch_size)


class Torch(Backend):
    """A transformers model, float or packed."""

    def __init__(self, name: str, model: Any, tokenizer: Any, batch_size: int) -> None:
        self.name, self.model, self.tokenizer = name, model, tokenizer
        reset_generation_config(model)
        self.positions = model.config.max_position_embeddings
        self.facts = {"threads": torch.get_num_threads()}
        quantizers = [getattr(a, "attention_quantizer", None) for _, a in attentions(model)]
        self._shares = not any(
            quantizer.revises for quantizer in quantizers if quantizer is not None
        )
        self.batch_size = batch_size if self._shares else 1  # else padding would be judged too

    @torch.inference_mode()
    def score(
        self, sequences: Sequence[Ids], counts: Sequence[int], step: Step = lambda done: None
    ) -> list[tuple[float, bool]]:
        inputs = [sequence[:-1] for sequence in sequences]
        scores: dict[int, tuple[float, bool]] = {}
        tokens = max(1, _LOGITS_AT_ONCE // self.model.config.vocab_size)
        for batch in batches(inputs, self.batch_size, tokens, self._shares):
            for request, score in zip(
                batch.requests, self._batch(batch, sequences, counts), strict=True
            ):
                scores[request] = score
            step(len(batch.requests))
        return [scores[number] for number in range(len(sequences))]

    def _batch(
        self, batch: Batch, sequences: Sequence[Ids], counts: Sequence[int]
    ) -> list[tuple[float, bool]]:
        length = len(batch.prefixes[0])
        cache = before = None
        if length:
            cache = new_cache(self.model)
            ids = torch.tensor(batch.prefixes)
            before = self.model(ids, past_key_values=cache, use_cache=True).logits.float()
        longest = max(map(len, batch.rests))
        after = None
        if longest:
            ids = torch.tensor([[*rest, *[0] * (longest - len(rest))] for rest in batch.rests])
            if cache is not None:
                cache.batch_select_indices(torch.tensor(batch.owners))
            after = self.model(ids, past_key_values=cache, use_cache=cache is not None).logits
            after = after.float()
        results = []
        for row, (request, owner) in enumerate(zip(batch.requests, batch.owners, strict=True)):
            sequence, rest = sequences[request], batch.rests[row]
            first = len(sequence) - counts[request]  # the first token that is scored
            parts = []
            if before is not None:
                parts.append(before[owner, first - 1 :])
            if after is not None:
                parts.append(after[row, max(first - 1 - length, 0) : len(rest)])
            rows = torch.cat(parts) if len(parts) > 1 else parts[0]
            results.append(_scored(rows, torch.tensor(sequence[first:])))
        return results

    @torch.inference_mode()
    def generate(
        self, prompts: Sequence[Ids], limit: int, stops: list[str], sampling: Sampling
    ) -> list[list[int]]:
        answers: list[list[int]] = []
        options = sampling.options()
        pad = self.tokenizer.pad_token_id or 0
        for start in range(0, len(prompts), self.batch_size):
            part = prompts[start : start + self.batch_size]
            longest = max(map(len, part))
            ids = torch.tensor([[*[pad] * (longest - len(prompt)), *prompt] for prompt in part])
            mask = torch.tensor(
                [[0] * (longest - len(prompt)) + [1] * len(prompt) for prompt in part]
            )
            ends = Stops(self.tokenizer, stops, longest, len(part))
            if stops:
                options["stopping_criteria"] = [ends]
            whole = self.model.generate(
                ids, attention_mask=mask, max_new_tokens=limit, pad_token_id=pad, **options
            )
            rows = zip(whole.tolist(), ends.lengths, strict=True)
            answers += [self._ended(row[longest:length]) for row, length in rows]
        return answers

    def _ended(self, ids: Ids) -> list[int]:
        """New tokens up to the end of the text: shorter answers of a batch are padded."""
        ends = self.model.generation_config.eos_token_id
        end_ids = ends if isinstance(ends, list) else [ends]
        stop = next((place for place, token in enumerate(ids, 1) if token in end_ids), len(ids))
        return list(ids[:stop])

    def close(self) -> None:
        del self.model


class Native(Backend):
    """The C++ engine on a packed folder."""

    name = NATIVE
    batch_size = 1

    def __init__(self, folder: Path, tokenizer: Any, threads: int | None) -> None:
        native.require()
        try:
            self.engine = Engine(folder, threads)
        except native.UnsupportedModel as error:
            raise UsageError(
                f"backend: native does not run '{folder}' ({error}); choose packed"
            ) from None
        self.tokenizer, self.positions = tokenizer, self.engine.context
        self.facts = {"isa": self.engine.isa, "threads": self.engine.threads}
        self._at_once = max(1, _LOGITS_AT_ONCE // (4 * self.engine.vocabulary))
        self._asked = 0  # texts so far: each is drawn from a seed of its own
        self._sequence = EngineSequence(self.engine)

    def score(
        self, sequences: Sequence[Ids], counts: Sequence[int], step: Step = lambda done: None
    ) -> list[tuple[float, bool]]:
        totals: dict[int, tuple[float, bool]] = {}
        self._sequence.forget()
        before: Ids = ()
        scores: list[tuple[float, bool] | None] = []  # of token n + 1 behind the first n + 1
        for number in sorted(range(len(sequences)), key=lambda n: tuple(sequences[n])):
            sequence = sequences[number]
            shared = shared_length(before, sequence[:-1])
            first = len(sequence) - counts[number] - 1
            reusable = range(first, shared - 1)
            keep = next((n for n in reusable if scores[n] is None), max(shared - 1, 0))
            scores = scores[:keep] + self._scores(sequence, keep, first)
            answer_scores = [score for score in scores[first:] if score is not None]
            totals[number] = (
                sum(value for value, _ in answer_scores),
                all(top for _, top in answer_scores),
            )
            before = sequence[:-1]
            step(1)
        return [totals[number] for number in range(len(sequences))]

    def _scores(self, sequence: Ids, keep: int, first: int) -> list[tuple[float, bool] | None]:
        """Scores of the tokens behind position `keep`; those before `first` are not needed."""
        self.engine.rewind(keep)
        scores: list[tuple[float, bool] | None] = []
        if keep < first:
            self.engine.prefill(sequence[keep:first])
            scores = [None] * (first - keep)
        end = len(sequence) - 1
        for start in range(max(keep, first), end, self._at_once):
            stop = min(start + self._at_once, end)
            logits = self.engine.prefill(sequence[start:stop], every=True)
            target = np.asarray(sequence[start + 1 : stop + 1])
            top = logits.max(axis=1)
            picked = logits[np.arange(len(target)), target]
            total = np.log(np.exp(logits - top[:, None]).sum(axis=1, dtype=np.float64))
            values = picked.astype(np.float64) - top - total
            best = logits.argmax(axis=1) == target
            scores += zip(values.tolist(), best.tolist(), strict=True)
        return scores

    def generate(
        self, prompts: Sequence[Ids], limit: int, stops: list[str], sampling: Sampling
    ) -> list[list[int]]:
        answers: list[list[int]] = []
        ends = Stops(self.tokenizer, stops)
        for prompt in prompts:
            self._asked += 1
            tokens: list[int] = []
            drawn = sampling._replace(seed=self._asked)
            for token in self._sequence.generate(prompt, limit, drawn):
                tokens.append(token)
                if ends.spelled(tokens):
                    break
            answers.append(tokens)
        return answers

    def close(self) -> None:
        self.engine.close()


def _scored(logits: Tensor, target: Tensor) -> tuple[float, bool]:
    """Log-probability of target (T,) under logits (T, V), and whether each is the largest."""
    loss, greedy = 0.0, True
    for rows, labels in zip(logits.split(_ROWS), target.split(_ROWS), strict=True):
        loss += F.cross_entropy(rows, labels, reduction="sum").item()
        greedy = greedy and bool((rows.argmax(-1) == labels).all())
    return -loss, greedy


def _float_name(model: str) -> tuple[str, str | None]:
    """The float model behind a name: itself, or what a packed folder was made from."""
    if not checkpoint.is_packed(Path(model)):
        return model, None
    section = recipes.load(Path(model) / recipes.RESOLVED).model
    return section.name, section.weights
