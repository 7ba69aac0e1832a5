"""ggml's block formats: learned levels and scales as Q4_0 and Q8_0 bytes, nothing rounded.

    Q4_0   32 weights: fp16 scale d, 16 bytes; the low nibble of byte j is weight j, the high one
           weight j + 16; w = d (nibble - 8)
    Q8_0   32 weights: fp16 scale d, 32 int8; w = d code

A longer group gives its scale to each of its blocks; rows are padded with zeros to whole blocks.

Legend: O rows, I inputs, K blocks of a row.
"""

from __future__ import annotations

import numpy as np

from edgeqat.errors import FormatError
from edgeqat.export.packed import Levels

BLOCK = 32
Q4_0, Q8_0 = "Q4_0", "Q8_0"
_NIBBLE, _OFFSET = 4, 8


def encode(weight: Levels) -> tuple[str, np.ndarray]:
    """Type and bytes (O, K * size) of a weight. Raises FormatError for a scale that fp16 does not
    hold.
    """
    rows, columns = weight.levels.shape
    count = -(-columns // BLOCK)
    levels = np.zeros((rows, count * BLOCK), np.int8)
    levels[:, :columns] = weight.levels
    levels = levels.reshape(rows, count, BLOCK)
    if not fits(weight):
        raise FormatError("gguf: a scale of this folder does not fit fp16; add --requantize")
    scale = weight.scale[:, np.arange(count) * BLOCK // weight.group_size].astype(np.float16)
    head = np.ascontiguousarray(scale)[..., None].view(np.uint8)
    if weight.bits > _NIBBLE:
        return Q8_0, np.concatenate([head, levels.view(np.uint8)], axis=-1).reshape(rows, -1)
    codes = (levels + _OFFSET).astype(np.uint8)
    body = codes[..., : BLOCK // 2] | (codes[..., BLOCK // 2 :] << 4)
    return Q4_0, np.concatenate([head, body], axis=-1).reshape(rows, -1)


def fits(weight: Levels) -> bool:
    """Whether fp16 holds the scales."""
    return np.array_equal(weight.scale.astype(np.float16).astype(weight.scale.dtype), weight.scale)
