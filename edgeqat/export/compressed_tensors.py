"""compressed-tensors folders: what plain transformers, and vLLM, load without any edgeqat.

    weight_packed  int32 (O, ceil(I * bits / 32))   level + 2^(bits-1), inputs from the low bits up
    weight_scale   float32 (O, G)                   G groups that divide the row
    weight_shape   int64 (2,)                       (O, I)

Levels of at most 4 bits travel in 4, others in 8: the value is the same. A group that does not
divide the row is cut into groups that do. Embeddings, norms and biases are float32. Activations are
that runtime's own dynamic int8 per token (its scale is max|x| / 127.5, ours / 127): perplexity is
equal, logits are not.

Legend: O rows, I inputs, G groups of a row.
"""

from __future__ import annotations

import json
import logging
import math
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import torch

from edgeqat import checkpoint
from edgeqat.errors import UsageError
from edgeqat.export.packed import Levels, PackedFolder, kv_reasons, model_type, refuse
from edgeqat.export.vocabulary import TEMPLATE
from edgeqat.families import FAMILIES, family_of
from edgeqat.quant import functional
from edgeqat.runtime import tokenizer
from edgeqat.scheme import FLOAT_BITS, Scheme, grid_of

_WAY = (
    "quantize it with 8-bit dynamic or float activations of one width and --set "
    "quant.activation.rotate=[], or add --requantize to round it anew"
)
_DROP = "add --drop-kv to leave keys and values in float"
_NARROW, _WIDE = 4, 8
_COPIED = ("generation_config.json", TEMPLATE, *tokenizer.FILES)
_CARD = """---
library_name: transformers
{base}tags: [compressed-tensors]
---
# {name}

Weights and activations of a model that EdgeQAT trained at {scheme}, for runtimes that read
compressed-tensors. {kept}

```python
from transformers import AutoModelForCausalLM  # pip install compressed-tensors

model = AutoModelForCausalLM.from_pretrained("THIS_FOLDER")
```
vLLM loads it too. How the model was trained and what it scored stands in the card of the packed
folder it was exported from.
"""
_logger = logging.getLogger("edgeqat")


def export(
    folder: Path, output: Path, requantize: bool = False, drop_kv: bool = False
) -> list[str]:
    """Write a packed folder as a compressed-tensors folder; returns lines that say how to load it.
    Raises an EdgeQATError in one line.
    """
    packed = PackedFolder(folder)
    hopeless = unsupported(packed.config, packed.scheme)
    if hopeless is not None:
        raise UsageError(f"compressed-tensors: {hopeless}; this folder cannot be exported")
    cache = kv_reasons(packed, "plain transformers")
    reasons = _reasons(packed)
    refusals = {_DROP: [] if drop_kv else cache, _WAY: [] if requantize else reasons}
    ways = " and ".join(way for way, refused in refusals.items() if refused)
    refuse("compressed-tensors", [*refusals[_DROP], *refusals[_WAY]], ways)
    for reason in cache:
        _logger.warning("compressed-tensors: %s; they stay float", reason)
    for reason in reasons:
        _logger.warning("compressed-tensors: %s; the folder is not what was trained", reason)
    tensors, groups = _converted(packed)
    with checkpoint.atomic_folder(output) as place:
        checkpoint.write_tensors(place / checkpoint.WEIGHTS, tensors)
        for name in _COPIED:
            if (folder / name).is_file():
                shutil.copyfile(folder / name, place / name)
        config = {**packed.config, "quantization_config": _config(packed, groups)}
        config["tie_word_embeddings"] &= not packed.has_turned_head
        text = json.dumps(config, indent=2) + "\n"
        (place / checkpoint.CONFIG).write_text(text, encoding="utf-8")
        card = _card(folder, output, packed.scheme, [*cache, *reasons])
        (place / "README.md").write_text(card, encoding="utf-8")
    return [f"AutoModelForCausalLM.from_pretrained('{output}')  # pip install compressed-tensors"]


def _card(folder: Path, output: Path, scheme: Scheme, differences: list[str]) -> str:
    """README.md of the export; from the packed folder's it keeps the base model and its licence."""
    original = folder / "README.md"
    lines = original.read_text(encoding="utf-8").splitlines() if original.is_file() else []
    base = [line + "\n" for line in lines if line.startswith(("base_model", "license:"))]
    kept = "It computes what was trained."
    if differences:
        kept = f"It differs from what was trained: {'; '.join(differences)}."
    return _CARD.format(base="".join(base), name=output.name, scheme=scheme, kept=kept)


def pack(levels: np.ndarray, bits: int) -> np.ndarray:
    """Levels (O, I) as int32 (O, ceil(I * bits / 32)); bits is 4 or 8."""
    rows, columns = levels.shape
    padded = np.zeros((rows, math.ceil(columns * bits / 32) * 32 // bits), np.uint8)
    padded[:, :columns] = levels.astype(np.int16) + (1 << (bits - 1))
    if bits == _NARROW:
        padded = padded[:, ::2] | (padded[:, 1::2] << 4)
    return np.ascontiguousarray(padded).view("<i4")


def unsupported(config: dict[str, Any], scheme: Scheme) -> str | None:
    """What no option helps with, for a model's config.json."""
    kind = model_type(config)
    if not family_of(kind).compressed_tensors:
        supported = ", ".join(
            name for name, family in FAMILIES.items() if family.compressed_tensors
        )
        return f"model_type '{kind}' is not one of {supported}"
    if scheme.weight_bits == FLOAT_BITS:
        return f"{scheme} has float weights, and only layers with quantized ones are described"
    return None


def _reasons(packed: PackedFolder) -> list[str]:
    """Why its arithmetic differs from what this folder was trained for."""
    bits, reasons = packed.scheme.activation_bits, []
    rotated = packed.rotated()
    if rotated is not None:
        reasons.append(f"the input of {rotated} is rotated")
    if bits < _WIDE:
        reasons.append(f"it has {bits}-bit activations")
    elif bits < FLOAT_BITS and packed.quant.activation.mode != "dynamic":
        reasons.append(f"its activations are {packed.quant.activation.mode}")
    if packed.quant.adaptive.share is not None:
        reasons.append("its tokens have two widths")
    return reasons


def _converted(packed: PackedFolder) -> tuple[dict[str, torch.Tensor], dict[Any, list[str]]]:
    """Tensors of the new folder, and the packed layers by (bits, group size; 0: a row)."""
    tensors: dict[str, torch.Tensor] = {}
    groups: dict[tuple[int, int], list[str]] = {}
    for name, tensor in packed.tensors.items():
        layer, _, part = name.rpartition(".")
        if (layer not in packed.layers and "attention_quantizer" not in name) or part == "bias":
            tensors[name] = tensor.float()
    if packed.has_turned_head:
        head = family_of(model_type(packed.config)).head
        tensors[f"{head}.weight"] = torch.from_numpy(packed.head_weight())
    for name, spec in packed.layers.items():
        if spec.tied_to:
            continue
        if spec.kind == "embedding":
            tensors[f"{name}.weight"] = torch.from_numpy(packed.weight(name).values())
            continue
        weight = _anew(packed, name) if spec.rotation else packed.weight(name)
        size = math.gcd(weight.group_size, spec.shape[1])
        weight = weight.regrouped(size)
        bits = _NARROW if weight.bits <= _NARROW else _WIDE
        groups.setdefault((bits, 0 if size == spec.shape[1] else size), []).append(name)
        tensors[f"{name}.weight_packed"] = torch.from_numpy(pack(weight.levels, bits))
        tensors[f"{name}.weight_scale"] = torch.from_numpy(weight.scale.copy())
        tensors[f"{name}.weight_shape"] = torch.tensor(spec.shape)
    return tensors, groups


def _anew(packed: PackedFolder, name: str) -> Levels:
    """A rotated layer's weight in the float model's basis, rounded again at MSE scales."""
    spec = packed.layers[name]
    grid = grid_of(_NARROW if spec.bits <= _NARROW else _WIDE)
    values = torch.from_numpy(packed.float_weight(name))
    grouped = functional.to_groups(values, spec.group_size)
    scale = functional.mse_scale(grouped, grid)
    codes = functional.from_groups(functional.quantize(grouped, scale, grid), spec.shape[1])
    size = spec.group_size or spec.shape[1]
    return Levels(codes.numpy().astype(np.int8), scale.squeeze(-1).numpy(), size, grid.bits)


def _config(packed: PackedFolder, groups: dict[tuple[int, int], list[str]]) -> dict[str, Any]:
    inputs = None
    if packed.scheme.activation_bits < FLOAT_BITS:
        inputs = _kind(_WIDE, "token", dynamic=True)
    config_groups = {}
    for number, ((bits, size), names) in enumerate(groups.items()):
        weights = _kind(bits, "group" if size else "channel", dynamic=False)
        weights |= {"group_size": size} if size else {}
        group = {"targets": names, "weights": weights, "input_activations": inputs}
        config_groups[f"group_{number}"] = {**group, "format": "pack-quantized"}
    head = family_of(model_type(packed.config)).head
    packed_head = any(head in names for names in groups.values())
    return {
        "quant_method": "compressed-tensors",
        "format": "pack-quantized",
        "quantization_status": "compressed",
        "config_groups": config_groups,
        "ignore": [] if packed_head else [head],
    }


def _kind(bits: int, strategy: str, dynamic: bool) -> dict[str, Any]:
    kind = {"num_bits": bits, "type": "int", "symmetric": True}
    return {**kind, "strategy": strategy, "dynamic": dynamic}
