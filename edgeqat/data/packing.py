"""Whole samples in blocks: several conversations share a block and do not see each other.

Positions start again at 0 with every sample, which is how transformers tells samples apart: its
masks are block-diagonal then. What is left of a block is padding, a sample of its own. Neither
padding nor the first token of a sample counts in the loss. A sample longer than a block is cut.

Legend: N blocks, T tokens of a block.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

import torch
from torch import Tensor

from edgeqat.data.tokens import Piece

_OPEN = 32  # blocks that wait for a sample that fills them


class Packed(NamedTuple):
    """Token ids (N, T) and positions (N, T), int64, and which tokens count (N, T), bool."""

    ids: Tensor
    positions: Tensor
    counted: Tensor


def packed(samples: Iterable[Piece], context: int, padding: int) -> Packed:
    """Samples in blocks of `context` tokens, in about their order: each goes into the first open
    block that has room. `padding` is the token of what stays free.
    """
    blocks: list[list[Piece]] = []
    rooms: dict[int, int] = {}  # of open blocks, by their number
    for sample in samples:
        for start in range(0, len(sample.ids), context):
            part = Piece(*(values[start : start + context] for values in sample))
            size = len(part.ids)
            number = next((n for n, room in rooms.items() if room >= size), len(blocks))
            if number == len(blocks):
                blocks.append([])
            blocks[number].append(part)
            rooms[number] = rooms.get(number, context) - size
            if not rooms[number]:
                del rooms[number]
            elif len(rooms) > _OPEN:
                del rooms[min(rooms)]
    rows = [_row(block, context, padding) for block in blocks]
    empty = torch.zeros(0, context, dtype=torch.int64)
    if not rows:
        return Packed(empty, empty, empty.bool())
    return Packed(*(torch.stack(values) for values in zip(*rows, strict=True)))


def _row(block: list[Piece], context: int, padding: int) -> Packed:
    free = context - sum(len(part.ids) for part in block)
    ids = torch.cat([*(part.ids for part in block), torch.full((free,), padding)])
    counted = torch.cat([*(part.counted for part in block), torch.zeros(free, dtype=torch.bool)])
    lengths = [*(len(part.ids) for part in block), free]
    positions = torch.cat([torch.arange(length) for length in lengths])
    return Packed(ids, positions, counted & (positions > 0))
