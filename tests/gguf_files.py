"""Small GGUF files of float models, written with the package's own names and rounding."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from edgeqat import source
from edgeqat.errors import EdgeQATError
from edgeqat.export import llama, vocabulary
from edgeqat.hf import float_model


def refused(words: str, path: Path) -> None:
    """That a file is refused in one line, by the early check or when it is read."""
    with pytest.raises(EdgeQATError, match=words) as caught:
        source.check(str(path))
        float_model.load_model(str(path))
    assert "\n" not in str(caught.value)
    assert caught.value.exit_code == 2
    assert path.name in str(caught.value)


_GPT2 = {
    "n_layer": "block_count",
    "n_positions": "context_length",
    "n_embd": "embedding_length",
    "n_head": "head_count",
    "layer_norm_epsilon": "layer_norm_eps",
}


def write(
    path: Path,
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    kind: str = "F16",
    architecture: str | None = None,
    sizes: dict[str, Any] | None = None,
    fields: dict[str, Any] | None = None,
    tensors: dict[str, np.ndarray] | None = None,
    left_out: tuple[str, ...] = (),
) -> dict[str, torch.Tensor]:
    """Write a model, its matrices as `kind`; returns the weights that the file holds, by the
    model's names. `fields` and `tensors` are added, `sizes` replace the model's.
    """
    config = model.config.to_dict()
    writer = gguf.GGUFWriter(path, architecture or _kind(model))
    for key, value in {**_sizes(config), **(sizes or {})}.items():
        getattr(writer, f"add_{key}")(value)
    _add_tokenizer(writer, path, tokenizer, config["vocab_size"])
    for key, value in (fields or {}).items():
        add = {str: writer.add_string, int: writer.add_uint32, float: writer.add_float32}
        add.get(type(value), writer.add_array)(key, value)
    stored = {}
    names = _names(model)
    for own, tensor in model.state_dict().items():
        if own == "lm_head.weight" and model.config.tie_word_embeddings:
            continue
        values = tensor.float().numpy()
        fits = values.ndim == 2 and values.shape[-1] % 32 == 0
        used = kind if fits else "F32"
        turned = _turned(model, own, values)
        held = _add(writer, names[own], turned, used) if names[own] not in left_out else turned
        stored[own] = torch.from_numpy(np.ascontiguousarray(_back(model, own, held)))
    for key, values in (tensors or {}).items():
        writer.add_tensor(key, values)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return stored


def _kind(model: PreTrainedModel) -> str:
    kind: str = model.config.model_type
    return "llama" if kind == "mistral" else kind


def _sizes(config: dict[str, Any]) -> dict[str, Any]:
    if config["model_type"] != "gpt2":
        return llama.sizes(config)
    own = {name: config[key] for key, name in _GPT2.items()}
    return {**own, "feed_forward_length": config["n_inner"] or 4 * config["n_embd"]}


def _add_tokenizer(writer: Any, path: Path, tokenizer: Any, size: int) -> None:
    folder = path.with_suffix(".tokenizer")
    tokenizer.save_pretrained(folder)
    vocabulary.read(folder, size).write(writer)


def _names(model: PreTrainedModel) -> dict[str, str]:
    """The names of a model's tensors in a file."""
    kinds = {name: number for number, name in gguf.MODEL_ARCH_NAMES.items()}
    known = gguf.get_tensor_name_map(kinds[_kind(model)], model.config.num_hidden_layers)
    names = {}
    for own in model.state_dict():
        stem, _, part = own.rpartition(".")
        names[own] = f"{known.get_name(stem)}.{part}"
    return names


def _is_turned(model: PreTrainedModel, name: str) -> str | None:
    if model.config.model_type == "gpt2" and name.rpartition(".h.")[1]:
        return "transposed" if name.endswith(".weight") and ".ln_" not in name else None
    if model.config.model_type in ("llama", "mistral"):
        return "interleaved" if ".q_proj." in name or ".k_proj." in name else None
    return None


def _turned(model: PreTrainedModel, name: str, values: np.ndarray) -> np.ndarray:
    """Values in the order of a file."""
    way = _is_turned(model, name)
    if way == "interleaved":
        head = model.config.head_dim
        split = values.reshape(-1, 2, head // 2, *values.shape[1:])
        values = split.swapaxes(1, 2).reshape(values.shape)
    return np.ascontiguousarray(values.T if way == "transposed" else values)


def _back(model: PreTrainedModel, name: str, values: np.ndarray) -> np.ndarray:
    way = _is_turned(model, name)
    if way == "interleaved":
        head = model.config.head_dim
        split = values.reshape(-1, head // 2, 2, *values.shape[1:])
        values = split.swapaxes(1, 2).reshape(values.shape)
    return values.T if way == "transposed" else values


def _add(writer: Any, name: str, values: np.ndarray, kind: str) -> np.ndarray:
    """Add a tensor; returns the values that it holds."""
    if kind == "F32":
        writer.add_tensor(name, values)
        return values
    number = getattr(gguf.GGMLQuantizationType, kind)
    raw = gguf.quants.quantize(values, number)
    writer.add_tensor(name, raw, raw_dtype=number)
    return gguf.quants.dequantize(raw, number).reshape(values.shape)
