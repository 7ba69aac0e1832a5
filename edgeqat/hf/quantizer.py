"""quant_method "edgeqat" in transformers: AutoModelForCausalLM.from_pretrained reads a packed
folder.

Layers named in quantization_config.layers are swapped for empty packed ones on the meta device,
then transformers fills them. The weights file is checked against its recorded hash first;
`edgeqat.load` checks every file.
"""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel
from transformers.quantizers.auto import (
    AUTO_QUANTIZATION_CONFIG_MAPPING,
    register_quantization_config,
    register_quantizer,
)
from transformers.quantizers.base import HfQuantizer
from transformers.utils.quantization_config import QuantizationConfigMixin

from edgeqat import checkpoint
from edgeqat.errors import FormatError
from edgeqat.hf import attention, kv_cache, own_layers
from edgeqat.nn import convert, residual
from edgeqat.nn.packed import PackedSpec
from edgeqat.recipe.quant import QuantSection

logger = logging.getLogger(__name__)


class EdgeQATConfig(QuantizationConfigMixin):
    """quantization_config of a packed folder (docs/format.md)."""

    def __init__(self, **values: Any) -> None:
        values.pop("quant_method", None)
        self.quant_method = checkpoint.METHOD  # type: ignore[assignment]
        self.format_version = values.pop("format_version", None)
        self.__dict__.update(values)


class EdgeQATQuantizer(HfQuantizer):
    """Loads packed folders; they are for inference (train a prepared model instead)."""

    requires_calibration = True
    quantization_config: EdgeQATConfig

    def _process_model_before_weight_loading(
        self, model: PreTrainedModel, **kwargs: Any
    ) -> PreTrainedModel:
        config = self.quantization_config.to_dict()
        checkpoint.check_config(config, str(model.config.name_or_path))
        for file in kwargs.get("checkpoint_files") or []:
            path = Path(file)
            if config["sha256"].get(path.name) not in (None, checkpoint.sha256(path)):
                raise FormatError(
                    f"{path.name}: '{path}' was changed after packing; copy the folder again"
                )
        specs = {name: PackedSpec.from_json(spec) for name, spec in config["layers"].items()}
        own_layers.to_plain(model)
        model.set_attn_implementation(attention.NAME)
        convert.install(model, specs, QuantSection.stored(config["quant"]))
        kv_cache.make_default(model)
        _check_tensors(model, kwargs.get("checkpoint_files") or [])
        return model

    def update_dtype(self, dtype: torch.dtype) -> torch.dtype:
        """They compute in float32: scales, thresholds and norms are those of training."""
        if dtype not in (None, torch.float32):
            logger.warning("dtype: a packed model computes in float32, not in %s", dtype)
        return torch.float32

    @property
    def is_trainable(self) -> bool:
        return False

    def is_serializable(self) -> bool:
        return False


def quantization_config(model: nn.Module, quant: QuantSection) -> dict[str, Any]:
    """The quantization_config of a converted model, without the hashes."""
    layers = {name: spec.to_json() for name, spec in convert.packed_specs(model).items()}
    adaptive = quant.adaptive.share is not None
    newer: dict[str, Any] = {} if adaptive else {"adaptive": True}  # unknown to older readers
    kv_options = {"kivi": quant.kv.kivi, "llama_cpp": quant.kv.llama_cpp}
    newer |= {"average_bits": True, "layer_bits": True}  # each layer's are below
    if quant.weight.init == "gptq":
        newer["weight"] = {"init"}
    rotated = residual.is_rotated(model)
    if not rotated:
        newer["rotate_residual"] = True
    version = checkpoint.ADAPTIVE_VERSION if adaptive else checkpoint.FORMAT_VERSION
    newer["kv"] = {"balance", *(name for name, value in kv_options.items() if not value)}
    return {
        "quant_method": checkpoint.METHOD,
        "format_version": checkpoint.ROTATED_VERSION if rotated else version,
        "scheme": quant.scheme,
        "quant": quant.model_dump(exclude=newer),
        "layers": layers,
    }


def _check_tensors(model: PreTrainedModel, files: list[str]) -> None:
    """Refuse weights that lack a tensor of the model: transformers only warns, and invents it."""
    if not files:
        return
    stored = {name for file in files for name in checkpoint.read_header(Path(file))}
    stored |= set(model.all_tied_weights_keys)
    seen: set[int] = set()
    for name, tensor in model.state_dict(keep_vars=True).items():
        if id(tensor) not in seen and name not in stored:
            what = "thresholds" if name.endswith(".threshold") else "weights"
            raise FormatError(
                f"{what}: {name} is missing from the folder's weights; copy the folder again"
            )
        seen.add(id(tensor))


def register() -> None:
    """Put config and quantizer into transformers' tables; safe to call again."""
    if checkpoint.METHOD not in AUTO_QUANTIZATION_CONFIG_MAPPING:
        register_quantization_config(checkpoint.METHOD)(EdgeQATConfig)
        register_quantizer(checkpoint.METHOD)(EdgeQATQuantizer)
