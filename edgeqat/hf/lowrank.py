"""Adapters of low-rank QAT in peft's format: adapter_config.json and adapter_model.safetensors.

The keys are peft's (`base_model.model.LAYER.lora_A.weight`). The product A B is in units of codes
and belongs inside the rounding (quant/lowrank): peft reads and lists the files, but adding A B to
the float weight, as a plain LoRA does, is not what they mean. The only file that knows peft.
"""

from __future__ import annotations

from pathlib import Path

from torch import Tensor, nn

from edgeqat import checkpoint
from edgeqat.errors import FormatError
from edgeqat.nn.lowrank import adapters

WEIGHTS = "adapter_model.safetensors"
_PREFIX = "base_model.model."
_NOTE = """These adapters were trained inside the rounding (LR-QAT, arXiv 2406.06385) and are merged
into the integers of the packed folder already. They count in units of a weight's scale: added to
float weights, as `PeftModel.from_pretrained` would, they make no sense. `edgeqat.hf.lowrank.
load_adapters` reads them into a model that was prepared the same way.
"""


def save_adapters(model: nn.Module, folder: Path, base_model: str) -> None:
    """Write the adapters of a model that trains with them into a folder."""
    from peft import LoraConfig

    quantizers = dict(adapters(model))
    first = next(iter(quantizers.values()))
    rank = first.lora_A.shape[0]
    config = LoraConfig(
        r=rank,
        lora_alpha=round(first.scaling * rank),
        target_modules=sorted({name.rpartition(".")[2] for name in quantizers}),
        base_model_name_or_path=base_model,
        task_type="CAUSAL_LM",
        inference_mode=True,
    )
    folder.mkdir(parents=True, exist_ok=True)
    config.save_pretrained(str(folder))
    tensors: dict[str, Tensor] = {}
    for name, quantizer in quantizers.items():
        for part in ("lora_A", "lora_B"):
            tensors[f"{_PREFIX}{name}.{part}.weight"] = getattr(quantizer, part).detach()
    checkpoint.write_tensors(folder / WEIGHTS, tensors)
    (folder / "README.md").write_text(_NOTE, encoding="utf-8")


def load_adapters(model: nn.Module, folder: Path) -> None:
    """Read adapters into a model of the same shape that has adapters (nn/lowrank.add_adapters)."""
    tensors = checkpoint.read_tensors(folder / WEIGHTS)
    for name, quantizer in adapters(model):
        for part in ("lora_A", "lora_B"):
            parameter: Tensor = getattr(quantizer, part)
            stored = tensors.get(f"{_PREFIX}{name}.{part}.weight")
            if stored is None or stored.shape != parameter.shape:
                raise FormatError(
                    f"adapter: '{folder}' holds no {part} of {tuple(parameter.shape)} for "
                    f"'{name}'; use adapters of this model and rank"
                )
            parameter.data.copy_(stored)
