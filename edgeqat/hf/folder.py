"""Packed folders as Hugging Face folders: writing one from a converted model, loading one back.

Stored: tiles and fp16 scales, everything else in float32 (METHODS: float leftovers), tokenizer
files, and config.json last. Tied weights are stored once.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from edgeqat import checkpoint
from edgeqat.errors import FormatError
from edgeqat.hf.quantizer import quantization_config
from edgeqat.nn.packed import PackedLinear
from edgeqat.recipe import QuantSection
from edgeqat.runtime import tokenizer as tokenizer_files

logger = logging.getLogger(__name__)


def stored_tensors(model: nn.Module) -> dict[str, Tensor]:
    """Tensors of a converted model as they are stored: shared ones once, floats as float32."""
    stored: dict[str, Tensor] = {}
    seen: set[int] = set()
    for name, tensor in model.state_dict(keep_vars=True).items():
        if id(tensor) in seen:
            continue
        seen.add(id(tensor))
        packed = tensor.dtype in (torch.uint8, torch.bool) or name.endswith("weight_scale")
        stored[name] = tensor.detach() if packed else tensor.detach().float()
    return stored


def write(
    folder: Path,
    model: PreTrainedModel,
    quant: QuantSection,
    tokenizer: PreTrainedTokenizerBase | None,
) -> None:
    """Fill an (existing, empty) folder with a converted model and its tokenizer, and seal it."""
    checkpoint.write_tensors(folder / checkpoint.WEIGHTS, stored_tensors(model))
    if tokenizer is not None:
        tokenizer.save_pretrained(folder)
    if model.generation_config is not None:
        model.generation_config.save_pretrained(folder)
    seal(folder, model, quant)


def seal(
    folder: Path,
    model: PreTrainedModel,
    quant: QuantSection,
    files: Mapping[str, str] | None = None,
) -> None:
    """Add text files by name, then write config.json with the hash of every file of the folder."""
    for name, text in (files or {}).items():
        (folder / name).write_text(text, encoding="utf-8")
    config = json.loads(model.config.to_json_string(use_diff=False))
    for key in ("_name_or_path", "_attn_implementation"):
        config.pop(key, None)
    config["architectures"] = [type(model).__name__]
    config["dtype"] = "float32"
    config["quantization_config"] = quantization_config(model, quant)
    checkpoint.write_config(folder, config)


def load(folder: str | Path, integer: bool = False, verify: bool = True) -> Any:
    """A packed folder as a transformers model, ready for generate(), or as the image classifier it
    holds; every file is checked against its hash.

    integer: compute linear layers on the integer path (what the kernels do) instead of the float
    one, which equals fake-quantization bit for bit. Raises FormatError in one line for a damaged or
    foreign folder.
    """
    import edgeqat.hf  # noqa: F401  (registers attention and quantizer)
    from edgeqat.hf import image_folder

    path = Path(folder)
    config = checkpoint.verify(path) if verify else checkpoint.read_config(path)
    if image_folder.is_image_folder(config):
        return image_folder.load(path, config)
    model = AutoModelForCausalLM.from_pretrained(path, local_files_only=True).eval()
    linear = [module for module in model.modules() if isinstance(module, PackedLinear)]
    for module in linear:
        module.integer = integer
    rest = sum(not module.has_integers for module in linear)
    if integer and rest:
        logger.warning(
            "packed: %d of %d linear layers multiply in float: their inputs have no scale of each "
            "token",
            rest, len(linear),
        )  # fmt: skip
    return model


def load_tokenizer(folder: str | Path) -> PreTrainedTokenizerBase:
    """The tokenizer of a folder; a FormatError in one line where there is none to read."""
    tokenizer_files.check(Path(folder))
    try:
        found = AutoTokenizer.from_pretrained(
            folder, local_files_only=True, trust_remote_code=False
        )
    except Exception as error:  # each family raises its own
        reason = (str(error).strip().splitlines() or [type(error).__name__])[-1]
        raise FormatError(
            f"tokenizer: '{folder}' has none that transformers reads ({reason[:160]}); save it "
            "again with tokenizer.save_pretrained"
        ) from None
    return found


def size_by_kind(model: nn.Module) -> dict[str, int]:
    """Bytes of a converted model by kind, at their stored precision: weights, scales, embeddings,
    other.
    """
    sizes = {"weights": 0, "embeddings": 0, "scales": 0, "other": 0}
    embeddings = ("embed_tokens", "lm_head", "wte", "wpe")
    for name, tensor in stored_tensors(model).items():
        size = tensor.numel() * tensor.element_size()
        if any(part in name for part in embeddings):
            sizes["embeddings"] += size
        elif name.endswith("weight_scale"):
            sizes["scales"] += size
        elif tensor.dtype == torch.uint8 or name.endswith("proj.weight"):
            sizes["weights"] += size
        else:
            sizes["other"] += size
    return {"total": sum(sizes.values()), **sizes}


def float_size(model: nn.Module) -> dict[str, Any]:
    """Bytes of the float model at fp16, tied weights once: what a packed size is set against."""
    unique = {id(p): p.numel() for p in model.parameters()}
    return {"fp16": 2 * sum(unique.values()), "parameters": sum(unique.values())}
