"""Text to packed blocks of token ids, in memory or streaming.

A corpus is a stream of documents (data/documents); its token ids (data/tokens) are joined and cut
into blocks of `context` tokens; the rest is dropped. With `bos`, every block starts with BOS.
Held-out text is the part named `valid`, or the last 5% of the training blocks. A mix is blocks of
several texts, each with its share.
"""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import Dataset, IterableDataset

from edgeqat.data.documents import documents, left_out, text_files
from edgeqat.data.packing import packed
from edgeqat.data.sources import mixed, sources
from edgeqat.data.tokens import Piece, Tokenizer, joined, pieces, samples
from edgeqat.errors import DataError
from edgeqat.recipe.data import DataSection

HELD_OUT = 0.05

logger = logging.getLogger(__name__)


class Blocks(Dataset):
    """Packed blocks (N, context) of token ids, int64, with stable indices; `counted`, of the same
    shape, are the tokens that count in the loss (None: all), and `positions` those of samples that
    do not see each other (None: a block is one text). Where `is_numbered`, a row holds its index
    too, as `sample`.
    """

    is_numbered = False

    unit = "tokens"  # of training speed

    def __init__(
        self, ids: Tensor, counted: Tensor | None = None, positions: Tensor | None = None
    ) -> None:
        self.ids, self.counted, self.positions = ids, counted, positions
        self._numbers = torch.arange(len(ids))

    def __len__(self) -> int:
        return len(self.ids)

    def __getitem__(self, index: int | slice) -> dict[str, Tensor]:
        row = {"input_ids": self.ids[index]}
        if self.counted is not None:
            row["counted"] = self.counted[index]
        if self.positions is not None:
            row["position_ids"] = self.positions[index]
        if self.is_numbered:
            row["sample"] = self._numbers[index]
        return row

    def part(self, index: Any) -> Blocks:
        """The blocks of an index tensor, a mask or a slice."""
        others = self.counted, self.positions
        return Blocks(self.ids[index], *(None if one is None else one[index] for one in others))

    def numbered(self) -> Blocks:
        """The same blocks, numbered."""
        blocks = Blocks(self.ids, self.counted, self.positions)
        blocks.is_numbered = True
        return blocks

    def evenly(self, count: int) -> Blocks:
        """`count` blocks evenly spaced over the text (0: all)."""
        if not 0 < count < len(self):
            return self
        return self.part(torch.linspace(0, len(self) - 1, count).long())

    def fingerprint(self) -> str:
        """A hash of shape and ids."""
        digest = hashlib.sha256(str(tuple(self.ids.shape)).encode())
        digest.update(self.ids.numpy().tobytes())
        for part in (self.counted, self.positions):
            if part is not None:
                digest.update(part.numpy().tobytes())
        return digest.hexdigest()


class BlockStream(IterableDataset):
    """Packed blocks tokenized while they are read, over and over: for text beyond memory."""

    unit = Blocks.unit

    def __init__(self, documents: Any, tokenizer: Tokenizer, data: DataSection) -> None:
        self.documents, self.tokenizer, self.data = documents, tokenizer, data

    def __iter__(self) -> Iterator[dict[str, Tensor]]:
        body = self.data.context - int(self.data.bos)
        while True:
            waiting = joined([])
            has_block = False
            for piece in _pieces(self.documents(), self.tokenizer, self.data):
                waiting = joined([waiting, piece])
                blocks = _blocks(waiting, self.tokenizer, self.data)
                waiting = Piece(*(part[len(blocks) * body :] for part in waiting))
                for number in range(len(blocks)):
                    has_block = True
                    yield blocks[number]
            if not has_block:
                raise _too_short("the stream", len(waiting.ids), self.data)


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
        if data.mix:
            raise DataError("data.mix: a stream cannot be mixed; set data.streaming to false")
        stream = BlockStream(lambda: documents(train, data.text_field), tokenizer, data)
        return stream, held_out_blocks(data, tokenizer)
    if valid is not None:
        blocks, held_out = _pack(train, tokenizer, data), held_out_blocks(data, tokenizer)
    elif data.packing == "whole":
        blocks, held_out = _parted(list(documents(train, data.text_field)), train, tokenizer, data)
    else:
        blocks = _pack(train, tokenizer, data)
        held = max(1, int(len(blocks) * HELD_OUT))
        if held >= len(blocks):
            raise DataError(
                f"data.train: '{train}' gives {len(blocks)} block(s) of {data.context} tokens, too "
                "few to hold some out; give more text, a smaller data.context or data.valid"
            )
        blocks, held_out = blocks.part(slice(None, -held)), blocks.part(slice(-held, None))
    train_blocks = _mixed(blocks, tokenizer, data).evenly(data.train_blocks)
    return train_blocks, held_out.evenly(data.valid_blocks)


def _parted(
    texts: list[Any], train: str, tokenizer: Tokenizer, data: DataSection
) -> tuple[Blocks, Blocks]:
    """Whole documents to train on, and the last ones, joined: 5% of all, or enough for a block."""
    held = max(1, int(len(texts) * HELD_OUT))
    while held < len(texts):
        with suppress(DataError):
            held_out = _joined(texts[-held:], "the end", tokenizer, data)
            return _whole(texts[:-held], f"'{train}'", tokenizer, data), held_out
        held *= 2
    raise DataError(
        f"data.packing: '{train}' gives {len(texts)} document(s), too few to keep them whole and "
        "hold some out; name data.valid, or leave it at 'joined'"
    )


def _mixed(blocks: Blocks, tokenizer: Tokenizer, data: DataSection) -> Blocks:
    """Blocks of the training text and of the others in data.mix, as many of each as its share
    says.
    """
    if not data.mix:
        return blocks
    others = [(_pack(name, tokenizer, data), share) for name, share in mixed(data)]
    parts = [(blocks, 1 - sum(data.mix.values())), *others]
    total = min(len(part) / share for part, share in parts)
    taken = [part.evenly(max(round(total * share), 1)) for part, share in parts]
    rest = ([getattr(part, name) for part in taken] for name in ("counted", "positions"))
    ids = torch.cat([part.ids for part in taken])
    return Blocks(ids, *(None if values[0] is None else torch.cat(values) for values in rest))


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
    texts = documents(valid, data.text_field)
    return _joined(texts, f"'{valid}'", tokenizer, data).evenly(data.valid_blocks)


def _pieces(texts: Any, tokenizer: Tokenizer, data: DataSection) -> Iterator[Piece]:
    return pieces(texts, tokenizer, data.loss == "answers")


def _pack(source: str, tokenizer: Tokenizer, data: DataSection) -> Blocks:
    """Training blocks of a source."""
    pack = _whole if data.packing == "whole" else _joined
    return pack(documents(source, data.text_field), f"'{source}'", tokenizer, data)


def _joined(texts: Any, source: str, tokenizer: Tokenizer, data: DataSection) -> Blocks:
    """Documents one behind the other, cut into blocks."""
    all_of_it = joined(list(_pieces(texts, tokenizer, data)))
    blocks = _blocks(all_of_it, tokenizer, data)
    if not len(blocks):
        raise _too_short(source, len(all_of_it.ids), data)
    return blocks


def _whole(texts: Any, source: str, tokenizer: Tokenizer, data: DataSection) -> Blocks:
    """Documents that stay whole and do not see each other."""
    _check_bos(tokenizer, data)
    pieces = samples(iter(texts), tokenizer, data.loss == "answers", data.bos)
    ids, positions, counted = packed(pieces, data.context, tokenizer.eos_token_id or 0)
    if not len(ids):
        raise _too_short(source, 0, data)
    return Blocks(ids, counted, positions)


def _check_bos(tokenizer: Tokenizer, data: DataSection) -> None:
    if data.bos and tokenizer.bos_token_id is None:
        raise DataError("data.bos: the tokenizer has no BOS token; set data.bos to false")


def _too_short(source: str, tokens: int, data: DataSection) -> DataError:
    return DataError(
        f"data: {source} gives {tokens} token(s), less than one block of data.context "
        f"{data.context}; give more text or a smaller data.context"
    )


def _blocks(piece: Piece, tokenizer: Tokenizer, data: DataSection) -> Blocks:
    body = data.context - int(data.bos)
    count = len(piece.ids) // body
    ids, counted = (part[: count * body].reshape(count, body) for part in piece)
    _check_bos(tokenizer, data)
    if data.bos:
        first = torch.full((count, 1), tokenizer.bos_token_id or 0)
        ids, counted = torch.cat([first, ids], dim=1), torch.cat([first == first, counted], dim=1)
    return Blocks(ids, counted if data.loss == "answers" else None)
