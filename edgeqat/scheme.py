"""Schemes: how many bits weights, activations and the KV cache have, and what follows from it.

`w4a8kv4` is read here and nowhere else. 16, 32 or a missing part mean float and are written 16.
qmin, qmax and the shape of a scale are computed here only; no torch, so that `--help` stays fast.

Legend: O output rows, I input columns, G groups of a row.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from edgeqat.errors import SchemeError

FLOAT_BITS = 16
HIGH_BITS = 8  # width of sinks and of important tokens
WIDTHS = {
    "w": ("weights", (1, 2, 3, 4, 6, 8, 16, 32)),
    "a": ("activations", (2, 3, 4, 6, 8, 16, 32)),
    "kv": ("KV cache", (2, 3, 4, 6, 8, 16, 32)),
}
GROUP_MULTIPLE = 32  # of group_size: a group boundary is a tile boundary at every width
_PATTERN = re.compile(r"(?:w(?P<w>\d+))?(?:a(?P<a>\d+))?(?:kv(?P<kv>\d+))?")


def input_words(bits: int, mode: str, rotation: int) -> str:
    """How the input of a layer is rounded, for tables."""
    text = "float" if bits >= FLOAT_BITS else f"{mode} {bits}"
    return f"{text}, rotated" if rotation else text


def average_words(bits: dict[str, float]) -> str:
    """Measured widths {"activations", "kv"}, for tables."""
    return f"average bits: activations {bits['activations']:.2f}, KV cache {bits['kv']:.2f}"


@dataclass(frozen=True)
class Scheme:
    """Bit widths of weights, activations and KV cache; 16 means float."""

    weight_bits: int = FLOAT_BITS
    activation_bits: int = FLOAT_BITS
    kv_bits: int = FLOAT_BITS

    @classmethod
    def parse(cls, text: str) -> Scheme:
        """Read `w4a8kv4`, `w2a32`, `kv4`, ... Raises SchemeError naming the part that is wrong."""
        match = _PATTERN.fullmatch(text.strip().lower())
        if match is None or not text.strip():
            raise SchemeError(
                f"scheme: '{text}' is not of the form w<W>a<A>kv<KV>; write for example w4a8kv4"
            )
        bits = []
        for part, (noun, allowed) in WIDTHS.items():
            value = int(match[part]) if match[part] else FLOAT_BITS
            if value not in allowed:
                choices = " ".join(map(str, allowed))
                raise SchemeError(
                    f"scheme: '{text}' asks for {value}-bit {noun}; choose {part} from {choices}"
                )
            bits.append(min(value, FLOAT_BITS))
        return cls(*bits)

    @property
    def is_float(self) -> bool:
        """Whether nothing is quantized."""
        return min(self.weight_bits, self.activation_bits, self.kv_bits) == FLOAT_BITS

    @property
    def has_low_tokens(self) -> bool:
        """Whether activations or the KV cache have fewer bits than important tokens get."""
        return min(self.activation_bits, self.kv_bits) < HIGH_BITS

    def __str__(self) -> str:
        return f"w{self.weight_bits}a{self.activation_bits}kv{self.kv_bits}"


@dataclass(frozen=True)
class Grid:
    """The levels of a signed uniform quantizer: level = (code + offset) * scale.

    `offset` is 0 on the integer grid (codes -8..7 at 4 bit) and 0.5 on the half-step grid of
    ParetoQ (2502.02631), used at 1 and 2 bit: levels -1.5 -0.5 0.5 1.5 times scale.
    """

    bits: int
    half_step: bool = False

    @property
    def qmin(self) -> int:
        return -(1 << (self.bits - 1))

    @property
    def qmax(self) -> int:
        return (1 << (self.bits - 1)) - 1

    @property
    def offset(self) -> float:
        return 0.5 if self.half_step else 0.0

    @property
    def top(self) -> float:
        """The largest level in units of scale: absmax / top is the scale that never clips."""
        return self.qmax + self.offset


def grid_of(bits: int) -> Grid:
    """The grid of a width: half-step at <= 2 bit, where an integer grid wastes a level."""
    return Grid(bits, half_step=bits <= 2)


def group_count(columns: int, group_size: int) -> int:
    """Groups in a row; the last one may be shorter than group_size."""
    return -(-columns // group_size)


def scale_shape(
    shape: tuple[int, int], granularity: str, group_size: int | None
) -> tuple[int, int]:
    """Shape (rows, G) of the scale of a weight (O, I): (1, 1), (O, 1) or (O, ceil(I/group_size)).

    Never 0-dimensional: FSDP refuses 0-dimensional parameters.
    """
    rows, columns = shape
    if granularity == "per_tensor":
        return (1, 1)
    if granularity == "per_channel":
        return (rows, 1)
    assert granularity == "per_group" and group_size, granularity
    return (rows, group_count(columns, group_size))
