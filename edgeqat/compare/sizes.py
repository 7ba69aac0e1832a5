"""Bytes of a quantized model on disk, and the average bits of its weights.

    bits           8 * bytes of all tensors / parameters, the embedding included, tied ones once
    matrix_bits    the same of the matrices in the decoder layers alone, with their scales

Parameters are the float model's: what a format pads counts as bytes and not as weights. Tensors
that a peer leaves in float32 count as fp16, since that is a matter of how it was loaded.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import nn

from edgeqat import checkpoint, gguf_header
from edgeqat.nn.blocks import decoder_layers

_FLOAT32 = "F32"


@dataclass(frozen=True)
class Counts:
    """Parameters of the float model in all and in the matrices of its decoder layers, and the names
    of these matrices.
    """

    parameters: int
    weights: int
    matrices: tuple[str, ...]

    @classmethod
    def of_model(cls, model: Any) -> Counts:
        """Of a loaded float model."""
        unique = {id(p): p.numel() for p in model.parameters()}
        matrices = {
            f"{layer}.{name}": module.weight.numel()
            for layer in decoder_layers(model)
            for name, module in model.get_submodule(layer).named_modules()
            if isinstance(getattr(module, "weight", None), nn.Parameter) and module.weight.ndim == 2
        }
        return cls(sum(unique.values()), sum(matrices.values()), tuple(matrices))

    def bits(self, sizes: Iterable[tuple[str, int, bool]]) -> dict[str, float]:
        """Bits from tensors: name, bytes, and whether they are of a layer's matrix."""
        listed = list(sizes)
        whole = sum(size for _, size, _ in listed)
        inner = sum(size for _, size, of_matrix in listed if of_matrix)
        return {"bits": 8 * whole / self.parameters, "matrix_bits": 8 * inner / self.weights}

    def of_float(self) -> dict[str, Any]:
        """The size of the float model in fp16."""
        return {"bytes": 2 * self.parameters, "bits": 16.0, "matrix_bits": 16.0}

    def of_gguf(self, file: Path) -> dict[str, Any]:
        """The size of a GGUF file."""
        tensors = gguf_header.header(file).tensors
        sizes = ((t.name, t.stored_bytes, _is_inner(t.name, len(t.shape))) for t in tensors)
        return {"bytes": file.stat().st_size, **self.bits(sizes)}

    def of_folder(self, folder: Path, halved: bool = False) -> dict[str, Any]:
        """The size of the safetensors files of a folder; `halved`: float32 counts as fp16."""
        files = sorted(folder.glob("*.safetensors"))  # adapters of ours lie below
        total = sum(file.stat().st_size for file in files)
        sizes = []
        for file in files:
            for name, kind, size in _tensors(file):
                counted = size // 2 if halved and kind == _FLOAT32 else size
                total -= size - counted
                sizes.append((name, counted, self.holds(name)))
        return {"bytes": total, **self.bits(sizes)}

    def holds(self, name: str) -> bool:
        """Whether a tensor belongs to a matrix of a layer: its weight, codes, scales or zeros."""
        owner, _, part = name.rpartition(".")
        inside = any(owner == one or owner.startswith(f"{one}.") for one in self.matrices)
        return inside and part != "bias"


def _is_inner(name: str, dimensions: int) -> bool:
    return name.startswith("blk.") and dimensions == 2


def _tensors(file: Path) -> list[tuple[str, str, int]]:
    """Name, type and bytes of the tensors of a safetensors file, from its header."""
    return [
        (name, entry["dtype"], entry["data_offsets"][1] - entry["data_offsets"][0])
        for name, entry in checkpoint.read_header(file).items()
    ]
