"""Packed folders of image classifiers: the files and hashes of hf/packed_folder, no tokenizer, and
in config.json the part `image` (hf/image_model).
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import nn

from edgeqat import checkpoint
from edgeqat.checkpoint import IMAGE
from edgeqat.errors import FormatError
from edgeqat.hf.image_model import ImageModel, from_config
from edgeqat.hf.quantizer import quantization_config
from edgeqat.hf.stored import stored_tensors
from edgeqat.nn import convert
from edgeqat.nn.packed import PackedSpec
from edgeqat.recipe.quant import QuantSection


def is_image_folder(config: dict[str, Any]) -> bool:
    """Whether a config.json describes an image classifier."""
    return IMAGE in config


def write(folder: Path, model: nn.Module, quant: QuantSection, kind: ImageModel) -> None:
    """Fill an (existing, empty) folder with a converted model, and seal it."""
    checkpoint.write_tensors(folder / checkpoint.WEIGHTS, stored_tensors(model))
    seal(folder, model, quant, kind)


def seal(
    folder: Path,
    model: nn.Module,
    quant: QuantSection,
    kind: ImageModel,
    files: Mapping[str, str] | None = None,
) -> None:
    """Add text files by name, then write config.json with the hash of every file of the folder."""
    for name, text in (files or {}).items():
        (folder / name).write_text(text, encoding="utf-8")
    config = kind.to_config()
    config["architectures"] = [type(model).__name__]
    config["dtype"] = "float32"
    config["quantization_config"] = quantization_config(model, quant)
    checkpoint.write_config(folder, config)


def load(folder: Path, config: dict[str, Any]) -> nn.Module:
    """The classifier of a packed folder whose config.json was checked, in eval mode."""
    quantization = config["quantization_config"]
    specs = {name: PackedSpec.from_json(spec) for name, spec in quantization["layers"].items()}
    model = from_config(config).build()
    convert.install(model, specs, QuantSection.stored(quantization["quant"]))
    tensors = checkpoint.read_tensors(folder / checkpoint.WEIGHTS)
    try:
        model.load_state_dict(tensors)
    except RuntimeError as error:
        reason = " ".join(str(error).split())[:160]
        raise FormatError(
            f"{checkpoint.WEIGHTS}: does not fit the model ({reason}); copy the folder again"
        ) from None
    return model.eval()
