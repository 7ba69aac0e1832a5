"""Training text that the float model writes itself (`data.train: self`, LLM-QAT 2305.17888): what
to train on where no text is given, and the distribution that the model has to keep.

Half of the documents are dialogues where the model has a chat template: it is given the template up
to the user's words, writes those, and then answers them (Magpie 2406.08464). The others begin with
a random token. All is sampled from the model's own distribution, less its improbable tail.
Documents that repeat themselves or each other are dropped.

The text is kept as a .jsonl file in the cache and is the recipe's `data.train` from then on. A run
that is stopped goes on behind the last whole batch, with the same text.
"""

from __future__ import annotations

import hashlib
import json
import logging
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch

import edgeqat
from edgeqat import cache
from edgeqat.data.sources import SELF
from edgeqat.errors import DataError, StorageError
from edgeqat.hf import float_model
from edgeqat.hf.continuation import ends_of, prompt_of, sampled
from edgeqat.nn.precision import uses_bf16
from edgeqat.output import write_text
from edgeqat.recipe.recipe import Recipe
from edgeqat.seeds import mixed
from edgeqat.train import processes

logger = logging.getLogger(__name__)

BATCH, LENGTH, QUESTION = 64, 512, 96  # documents, tokens of one, and of a user's words
_TOP_P = 0.95
_TIME_SHARE = 0.2  # of train.minutes
_GRAM, _REPEATED = 8, 0.3  # words in a row; share of them that occurred before in a document
_SHORTEST = 16  # tokens
_LEAST_KEPT = 0.1  # of the first documents
_MARK = "\x00"


def file_of(recipe: Recipe) -> Path:
    """Where the text of a recipe is kept."""
    name = float_model.fingerprint(recipe.model.name, recipe.model.weights)
    told = [name, recipe.seed, recipe.data.self_tokens, _seconds(recipe), edgeqat.__version__]
    digest = hashlib.sha256(json.dumps(told).encode()).hexdigest()
    return cache.folder(SELF) / f"{digest[:32]}.jsonl"


def _seconds(recipe: Recipe) -> float | None:
    """How long the model may write; a shorter text than another run's is another text."""
    minutes = recipe.train.minutes
    return None if minutes is None else 60 * _TIME_SHARE * minutes


def writes_text(recipe: Recipe) -> bool:
    """Whether the model is to write the text of a recipe."""
    data = recipe.data
    return SELF in data.mix or (data.train == SELF and data.root is None)


def with_self_text(recipe: Recipe) -> Recipe:
    """The recipe with the file of the text in the place of `self`, written now if it is not there;
    another recipe as it is.
    """
    if not writes_text(recipe):
        return recipe
    file = file_of(recipe)
    if not processes.broadcast_from_first(file.is_file):
        _write(recipe, file)
        processes.wait()
    logger.info("text: written by the model itself, in '%s'", file)
    data = recipe.data
    mix = {str(file) if name == SELF else name: share for name, share in data.mix.items()}
    train = str(file) if data.train == SELF and data.root is None else data.train
    data = data.model_copy(update={"train": train, "mix": mix})
    return recipe.model_copy(update={"data": data})


def _write(recipe: Recipe, file: Path) -> None:
    """Every process writes batches of its own; the text is that of one process."""
    part = file.with_suffix(".part")
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        batches = processes.broadcast_from_first(lambda: _kept(part))
        tokens = sum(batch["tokens"] for batch in batches)
        seen = {text for batch in batches for text in batch["texts"]}
        limit, begun, wanted = _seconds(recipe), time.monotonic(), recipe.data.self_tokens
        writer, is_late = Writer(recipe) if tokens < wanted else None, False
        while writer is not None and tokens < wanted and not is_late:
            written = writer.batch(len(batches) + processes.number())
            for documents in processes.gathered_values(written):
                if tokens < wanted:
                    batches.append(_new(documents, seen))
                    tokens += batches[-1]["tokens"]
                    if processes.is_first():
                        with open(part, "a", encoding="utf-8") as out:
                            out.write(json.dumps(batches[-1]) + "\n")
                    _check(batches)
            spent = processes.broadcast_from_first(lambda: time.monotonic() - begun)
            logger.info("text: %d of %d tokens, %.0f s", tokens, wanted, spent)
            is_late = limit is not None and spent > limit
        if processes.is_first():
            lines = [json.dumps({"text": text}) for batch in batches for text in batch["texts"]]
            write_text(file, "\n".join(lines) + "\n")
            part.unlink(missing_ok=True)
    except OSError as error:
        raise StorageError(
            f"data.train: the model's own text cannot be kept in '{file.parent}' "
            f"({error.strerror or error}); set EDGEQAT_CACHE to a folder with room"
        ) from None


def _new(documents: list[tuple[str, int]], seen: set[str]) -> dict[str, Any]:
    """The documents of a batch that were not seen before, and the number of their tokens."""
    new = {text: tokens for text, tokens in documents if text not in seen}
    seen.update(new)
    return {"texts": list(new), "tokens": sum(new.values())}


def _kept(part: Path) -> list[dict[str, Any]]:
    """The whole batches of a run that was stopped; what is cut off goes."""
    batches: list[dict[str, Any]] = []
    if part.is_file():
        for line in part.read_text(encoding="utf-8", errors="replace").splitlines():
            try:
                batches.append(json.loads(line))
            except ValueError:
                break
        part.write_text("".join(json.dumps(b) + "\n" for b in batches), encoding="utf-8")
    return batches


def _check(batches: list[dict[str, Any]]) -> None:
    written = BATCH * len(batches)
    kept = sum(len(batch["texts"]) for batch in batches)
    if len(batches) == 2 and kept < _LEAST_KEPT * written:
        raise DataError(
            f"data.train: the model's own text is empty or repeats itself ({kept} of {written} "
            "documents are of use); give --data TEXT"
        )


class Writer:
    """A float model that writes, batch by batch; a batch follows from the seed and its number."""

    def __init__(self, recipe: Recipe) -> None:
        name, weights = recipe.model.name, recipe.model.weights
        self.tokenizer = float_model.load_tokenizer(name)
        model: Any = float_model.load_model(name, weights).eval()
        self.model = model.bfloat16() if uses_bf16(None, model, "cpu") else model
        self.seed, self.ends = recipe.seed, ends_of(self.model, self.tokenizer)
        room = model.config.max_position_embeddings
        self.length, self.question = min(LENGTH, room), min(QUESTION, room // 4)

    def batch(self, number: int) -> list[tuple[str, int]]:
        """Texts that do not repeat themselves, with the number of their tokens."""
        torch.manual_seed(mixed(self.seed, number))
        opening = _opening(self.tokenizer) if number % 2 == 0 else None
        texts = self._free() if opening is None else self._dialogues(*opening)
        texts = [text for text in texts if not _repeats(text)]
        counts = [len(ids) for ids in self._ids(texts)]
        return [(t, n) for t, n in zip(texts, counts, strict=True) if n >= _SHORTEST]

    def _free(self) -> list[str]:
        """Documents behind one random token."""
        special = set(self.tokenizer.all_special_ids)
        known = [i for i in range(len(self.tokenizer)) if i not in special]
        first = torch.tensor(known)[torch.randint(len(known), (BATCH,))]
        rows = [[int(token)] for token in first]
        if self.tokenizer.bos_token_id is not None and not self.tokenizer.chat_template:
            rows = [[self.tokenizer.bos_token_id, *row] for row in rows]
        return self._whole(rows)

    def _dialogues(self, before: str, behind: Callable[[str], str]) -> list[str]:
        """Questions that the model writes behind `before`, and its answers."""
        ids = self._ids([before])[0]
        written = self._continued([ids] * BATCH, len(ids) + self.question)
        questions = [self._text([i for i in row if i not in self.ends]).strip() for row in written]
        prompts = [behind(question) for question in questions if question]
        return self._whole(self._ids(prompts)) if prompts else []

    def _continued(self, rows: list[list[int]], length: int) -> list[list[int]]:
        """What the model writes behind rows of token ids, up to `length` tokens or an end."""
        new = max(length - max(len(row) for row in rows), 1)
        return sampled(self.model, rows, self.ends, new, _TOP_P)

    def _whole(self, rows: list[list[int]]) -> list[str]:
        """Texts of rows of token ids, each with what the model writes behind it."""
        rows = [row[: self.length - 1] for row in rows]
        new = self._continued(rows, self.length)
        return [self._text(row + behind) for row, behind in zip(rows, new, strict=True)]

    def _text(self, ids: list[int]) -> str:
        return str(self.tokenizer.decode(ids))

    def _ids(self, texts: list[str]) -> list[list[int]]:
        if not texts:
            return []
        ids: list[list[int]] = self.tokenizer(texts, add_special_tokens=False)["input_ids"]
        return ids


def _opening(tokenizer: Any) -> tuple[str, Callable[[str], str]] | None:
    """What a chat template has before a user's words, and what makes a prompt of those; None
    without a template, or with one that does not take a user's words as they are.
    """
    if not tokenizer.chat_template:
        return None

    prompt = partial(prompt_of, tokenizer)
    try:
        before, mark, _ = prompt(_MARK).partition(_MARK)
    except Exception:  # whatever a template of someone's own raises
        return None
    return (before, prompt) if mark and before else None


def _repeats(text: str) -> bool:
    """Whether a text says the same again and again."""
    words = text.split()
    grams = [tuple(words[at : at + _GRAM]) for at in range(len(words) - _GRAM + 1)]
    return len(grams) > 0 and 1 - len(set(grams)) / len(grams) > _REPEATED
