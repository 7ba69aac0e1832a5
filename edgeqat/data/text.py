"""Text to packed blocks of token ids, in memory or streaming.

A corpus is a stream of documents (data/documents); its token ids are joined (end-of-text between
documents, when the tokenizer has one) and cut into blocks of `context` tokens; the rest is dropped.
With `bos`, every block starts with BOS. Held-out text is the part named `valid`, or the last 5% of
the training blocks.
"""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor
from torch.utils.data import Dataset, IterableDataset

from edgeqat.data.documents import documents, left_out, text_files
from edgeqat.data.sources import sources
from edgeqat.errors import DataError
from edgeqat.recipe.data import DataSection

HELD_OUT = 0.05
_PIECE = 1 << 20  # characters tokenized at once

logger = logging.getLogger(__name__)


class Tokenizer(Protocol):
    """What is used of a tokenizer."""

    bos_token_id: int | None
    eos_token_id: int | None

    def __call__(self, text: str, **options: Any) -> Any: ...


class Blocks(Dataset):
    """Packed blocks (N, context) of token ids, int64, with stable indices."""

    unit = "tokens"  # of training speed

    def __init__(self, ids: Tensor) -> None:
        self.ids = ids

    def __len__(self) -> int:
        return len(self.ids)

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        return {"input_ids": self.ids[index]}

    def evenly(self, count: int) -> Blocks:
        """`count` blocks evenly spaced over the text (0: all)."""
        if not 0 < count < len(self):
            return self
        return Blocks(self.ids[torch.linspace(0, len(self) - 1, count).long()])

    def fingerprint(self) -> str:
        """A hash of shape and ids."""
        digest = hashlib.sha256(str(tuple(self.ids.shape)).encode())
        digest.update(self.ids.numpy().tobytes())
        return digest.hexdigest()


class BlockStream(IterableDataset):
    """Packed blocks tokenized while they are read, over and over: for text beyond memory."""

    unit = Blocks.unit

    def __init__(self, documents: Any, tokenizer: Tokenizer, data: DataSection) -> None:
        self.documents, self.tokenizer, self.data = documents, tokenizer, data

    def __iter__(self) -> Iterator[dict[str, Tensor]]:
        body = self.data.context - int(self.data.bos)
        while True:
            waiting = torch.zeros(0, dtype=torch.int64)
            has_block = False
            for piece in _token_pieces(self.documents(), self.tokenizer):
                waiting = torch.cat([waiting, torch.tensor(piece, dtype=torch.int64)])
                blocks = _blocks(waiting, self.tokenizer, self.data)
                waiting = waiting[len(blocks) * body :]
                for block in blocks:
                    has_block = True
                    yield {"input_ids": block}
            if not has_block:
                raise _too_short("the stream", len(waiting), self.data)


def load_blocks(data: DataSection, tokenizer: Tokenizer) -> tuple[Blocks | BlockStream, Blocks]:
    """Training and held-out blocks of a recipe's `data` section. Raises DataError in one line."""
    train, valid = sources(data)
    if Path(train).is_dir():
        _tell_files(Path(train), valid)
    if data.streaming:
        if valid is None:
            raise DataError("data.valid: streaming has no end to hold out from; name a valid text")
        if data.train_blocks:
            raise DataError(
                f"data.train_blocks: {data.train_blocks} of a stream cannot be spaced evenly; set "
                "data.streaming to false or leave it out"
            )
        stream = BlockStream(lambda: documents(train, data.text_field), tokenizer, data)
        return stream, held_out_blocks(data, tokenizer)
    blocks = _pack(train, tokenizer, data)
    if valid is not None:
        return blocks.evenly(data.train_blocks), held_out_blocks(data, tokenizer)
    held = max(1, int(len(blocks) * HELD_OUT))
    if held >= len(blocks):
        raise DataError(
            f"data.train: '{train}' gives {len(blocks)} block(s) of {data.context} tokens, too few "
            "to hold some out; give more text, a smaller data.context or data.valid"
        )
    kept, held_out = Blocks(blocks.ids[:-held]), Blocks(blocks.ids[-held:])
    return kept.evenly(data.train_blocks), held_out.evenly(data.valid_blocks)


def _tell_files(folder: Path, valid: str | None) -> None:
    """Say which files of a folder are not trained on."""
    if valid is not None and valid.endswith("#valid"):
        names = [str(file.relative_to(folder)) for file in text_files(folder)[1]]
        logger.info("held out by name: %s", ", ".join(names))
    others = left_out(folder)
    if others is not None:
        logger.info("%s", others)


def held_out_blocks(data: DataSection, tokenizer: Tokenizer) -> Blocks:
    """The held-out blocks of load_blocks() alone: training text that has a held-out part is not
    read.
    """
    _, valid = sources(data)
    if valid is None:
        return load_blocks(data, tokenizer)[1]
    return _pack(valid, tokenizer, data).evenly(data.valid_blocks)


def _token_pieces(texts: Iterator[str], tokenizer: Tokenizer) -> Iterator[list[int]]:
    options = {"add_special_tokens": False, "verbose": False}
    first = True
    for text in texts:
        if not first and tokenizer.eos_token_id is not None:
            yield [tokenizer.eos_token_id]
        first, start = False, 0
        while start < len(text):
            end = start + _PIECE
            newline = text.rfind("\n", start, end) + 1 if end < len(text) else len(text)
            end = newline if newline > start else end
            yield tokenizer(text[start:end], **options)["input_ids"]
            start = end


def _pack(source: str, tokenizer: Tokenizer, data: DataSection) -> Blocks:
    pieces = [
        torch.tensor(piece, dtype=torch.int64)
        for piece in _token_pieces(documents(source, data.text_field), tokenizer)
    ]
    ids = torch.cat(pieces) if pieces else torch.zeros(0, dtype=torch.int64)
    blocks = _blocks(ids, tokenizer, data)
    if not len(blocks):
        raise _too_short(f"'{source}'", len(ids), data)
    return Blocks(blocks)


def _too_short(source: str, tokens: int, data: DataSection) -> DataError:
    return DataError(
        f"data: {source} gives {tokens} token(s), less than one block of data.context "
        f"{data.context}; give more text or a smaller data.context"
    )


def _blocks(ids: Tensor, tokenizer: Tokenizer, data: DataSection) -> Tensor:
    body = data.context - int(data.bos)
    count = len(ids) // body
    blocks = ids[: count * body].reshape(count, body)
    if not data.bos:
        return blocks
    if tokenizer.bos_token_id is None:
        raise DataError("data.bos: the tokenizer has no BOS token; set data.bos to false")
    return torch.cat([torch.full((count, 1), tokenizer.bos_token_id), blocks], dim=1)
