"""A packed folder as exports read it: codes, scales and float tensors as numpy arrays, and what
they stand for. No modules are made.

Legend: O rows, I inputs, G groups of a row.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from edgeqat import checkpoint
from edgeqat.errors import UsageError
from edgeqat.nn.packed import PackedSpec
from edgeqat.quant import packing
from edgeqat.quant.hadamard import rotate
from edgeqat.recipe.quant import QuantSection
from edgeqat.scheme import FLOAT_BITS, Scheme, grid_of

_TURN = "model.norm.rotation"
TURNED_HEAD = "its residual stream is rotated, and its head is tied to the embedding"


@dataclass(frozen=True)
class Levels:
    """A weight (O, I) as integers and scales (O, G) float32: value = level * scale of its group.

    `bits` hold the levels; the half-step grid of 1 and 2 bits has odd levels and half the scale.
    """

    levels: np.ndarray
    scale: np.ndarray
    group_size: int
    bits: int

    def values(self) -> np.ndarray:
        """The weight in float32."""
        columns = self.levels.shape[1]
        scale = np.repeat(self.scale, self.group_size, axis=1)[:, :columns]
        return self.levels.astype(np.float32) * scale

    def regrouped(self, group_size: int) -> Levels:
        """The same in smaller groups, which must divide the present ones or the row."""
        columns = self.levels.shape[1]
        start = np.arange(0, columns, group_size) // self.group_size
        return Levels(self.levels, self.scale[:, start], group_size, self.bits)

    def rows(self, order: np.ndarray) -> Levels:
        """The rows in another order."""
        return Levels(self.levels[order], self.scale[order], self.group_size, self.bits)


class PackedFolder:
    """A checked packed folder: its config, layers and tensors."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.config = checkpoint.verify(folder)
        quantization = self.config["quantization_config"]
        self.quant = QuantSection.stored(quantization["quant"])
        self.layers = {n: PackedSpec.from_json(s) for n, s in quantization["layers"].items()}
        self.tensors = checkpoint.read_tensors(folder / checkpoint.WEIGHTS)
        self._turn = self.tensors.pop(_TURN, None)

    @property
    def scheme(self) -> Scheme:
        """Its bits."""
        return self.quant.bits()

    def weight(self, name: str) -> Levels:
        """Levels of a packed layer."""
        spec = self.layers[name]
        tensors = {part: self.tensors[f"{name}.{part}"] for part in ("weight", "weight_scale")}
        codes = packing.unpack(tensors["weight"], spec.bits, spec.shape).numpy()
        scale = packing.unpack_scale(tensors["weight_scale"], spec.shape[0]).float().numpy()
        group = spec.group_size or spec.shape[1]
        if grid_of(spec.bits).half_step:
            return Levels(2 * codes + 1, scale / 2, group, spec.bits + 1)
        return Levels(codes, scale, group, spec.bits)

    def float_weight(self, name: str) -> np.ndarray:
        """The weight (O, I) in float32 and in the float model's basis, packed or not."""
        spec = self.layers.get(name)
        if spec is None:
            return self.tensors[f"{name}.weight"].float().numpy()
        import torch

        return rotate(torch.from_numpy(self.weight(name).values()), spec.rotation).numpy()

    def array(self, name: str) -> np.ndarray | None:
        """A float tensor; None where there is none of the name."""
        tensor = self.tensors.get(name)
        return None if tensor is None else tensor.float().numpy()

    @property
    def has_turned_head(self) -> bool:
        """Whether a matrix stands before the tied head, as a rotated residual stream needs it."""
        return self._turn is not None

    def head_weight(self) -> np.ndarray:
        """The weight (V, H) of a tied head with the matrix before it, float32."""
        assert self._turn is not None
        packed = [name for name, spec in self.layers.items() if spec.kind == "embedding"]
        floating = self.tensors.get("model.embed_tokens.weight")
        if packed:
            weight = self.weight(packed[0]).values()
        else:
            assert floating is not None
            weight = floating.float().numpy()
        turned: np.ndarray = weight @ self._turn.numpy()
        return turned

    def rotated(self) -> str | None:
        """The first layer whose input is rotated."""
        return next((n for n, spec in self.layers.items() if spec.rotation), None)


def kv_reasons(packed: PackedFolder, runtime: str) -> list[str]:
    """Why a runtime whose cache is of another kind does not compute what was trained."""
    kv = packed.scheme.kv_bits
    if kv == FLOAT_BITS:
        return []
    return [f"its {kv}-bit keys and values were trained in EdgeQAT's layout, {runtime} has another"]


def refuse(target: str, reasons: list[str], way: str) -> None:
    """A UsageError that names what a target cannot hold, and the way out."""
    if reasons:
        raise UsageError(
            f"{target}: it cannot hold this folder exactly ({'; '.join(reasons)}); {way}"
        )


def model_type(config: dict[str, Any]) -> str:
    """The architecture that a config.json names."""
    return str(config.get("model_type"))


def config_value(config: dict[str, Any], name: str, default: Any = None) -> Any:
    """A field of config.json; null counts as missing."""
    value = config.get(name)
    return default if value is None else value
