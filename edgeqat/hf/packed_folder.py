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

from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from edgeqat import checkpoint
from edgeqat.errors import FormatError
from edgeqat.hf.quantizer import quantization_config
from edgeqat.hf.stored import stored_tensors
from edgeqat.nn.packed import PackedLinear
from edgeqat.recipe.quant import QuantSection
from edgeqat.runtime import tokenizer as tokenizer_files

logger = logging.getLogger(__name__)


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
        tokenizer = AutoTokenizer.from_pretrained(
            folder, local_files_only=True, trust_remote_code=False
        )
    except Exception as error:  # each family raises its own
        reason = (str(error).strip().splitlines() or [type(error).__name__])[-1]
        raise FormatError(
            f"tokenizer: '{folder}' has none that transformers reads ({reason[:160]}); save it "
            "again with tokenizer.save_pretrained"
        ) from None
    return tokenizer
