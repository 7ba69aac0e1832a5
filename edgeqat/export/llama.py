"""What a GGUF file of the Llama family holds: names, sizes and tensors as llama.cpp wants them.

    rows of q_proj and k_proj   interleaved per head (x0 y0 x1 y1 ...) in the architecture `llama`
    ffn no multiple of 32       padded with channels of zeros: silu(0) * 0 = 0
    tied embeddings             token_embd alone

Levels and scales become Q4_0 and Q8_0 blocks as they are (export/blocks); norms and biases are
float32. What llama.cpp would compute otherwise is a reason to refuse (reasons()).

Legend: O rows, I inputs, D head_dim.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

from edgeqat.export import blocks
from edgeqat.export.float_weights import FloatWeights
from edgeqat.export.packed import (
    TURNED_HEAD,
    Levels,
    PackedFolder,
    config_value,
    kv_reasons,
    model_type,
)
from edgeqat.families import FAMILIES, family_of
from edgeqat.scheme import FLOAT_BITS, Scheme

KV_TYPES = {4: "q4_0", 8: "q8_0", FLOAT_BITS: "f16"}
_HIDDEN = "hidden_size"
_ACTIVATION_BITS = 8  # what llama.cpp multiplies with
_MODES = ("q8_0", "dynamic")  # its own, and one scale a token, which it only makes finer
_LAYER = {
    "input_layernorm": "attn_norm",
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "self_attn.q_norm": "attn_q_norm",
    "self_attn.k_norm": "attn_k_norm",
    "post_attention_layernorm": "ffn_norm",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
}
_ENDS = {"model.embed_tokens": "token_embd", "model.norm": "output_norm", "lm_head": "output"}
_WIDE = ("mlp.gate_proj", "mlp.up_proj")

Source = PackedFolder | FloatWeights
Tensor = tuple[str, str, np.ndarray]  # name, type (F32, Q4_0, ...), values or bytes (O, ...)
# float values (O, I) and a type to its name and bytes
Rounding = Callable[[np.ndarray, str], tuple[str, np.ndarray]]


def reasons(packed: PackedFolder) -> list[str]:
    """Why llama.cpp would not compute what this folder was trained for."""
    scheme, mode = packed.scheme, packed.quant.activation.mode
    refusals = []
    rotated = packed.rotated()
    if rotated is not None:
        refusals.append(f"the input of {rotated} is rotated")
    if packed.has_turned_head:
        refusals.append(TURNED_HEAD)
    if scheme.activation_bits < _ACTIVATION_BITS:
        refusals.append(f"it has {scheme.activation_bits}-bit activations")
    elif scheme.activation_bits < FLOAT_BITS and mode not in _MODES:
        refusals.append(f"its activations are {mode}")
    if packed.quant.adaptive.share is not None:
        refusals.append("its tokens have two widths")
    if not packed.quant.kv.llama_cpp:
        refusals += kv_reasons(packed, "llama.cpp")
    return refusals


def unsupported(config: dict[str, Any], scheme: Scheme) -> str | None:
    """What no option helps with, for a model's config.json."""
    kind = model_type(config)
    if family_of(kind).llama_cpp is None:
        supported = ", ".join(name for name, family in FAMILIES.items() if family.llama_cpp)
        return f"model_type '{kind}' is not one of {supported}"
    if config_value(config, "sliding_window") and config_value(config, "use_sliding_window", True):
        return "llama.cpp has no sliding window in this architecture"
    bits, head = scheme.kv_bits, sizes(config)["key_length"]
    for width in (config[_HIDDEN], head * config["num_attention_heads"]):
        if width % blocks.BLOCK:
            return f"layers of {width} inputs are no multiple of llama.cpp's {blocks.BLOCK}"
    if kind == "qwen2" and head * config["num_attention_heads"] != config[_HIDDEN]:
        return "llama.cpp's qwen2 wants hidden_size = heads * head_dim"
    if bits < FLOAT_BITS and head % blocks.BLOCK:
        return f"heads of {head} are no multiple of the {blocks.BLOCK} of a quantized cache"
    kind = _rope(config).get("rope_type", "default")
    return None if kind in ("default", "llama3") else f"rope_type '{kind}' is not exported"


def architecture(packed: Source) -> str:
    """llama.cpp's name of the architecture."""
    return str(family_of(model_type(packed.config)).llama_cpp)


def sizes(config: dict[str, Any]) -> dict[str, Any]:
    """The numbers of a GGUF header, by the part of the writer's method name behind `add_`."""
    heads = config["num_attention_heads"]
    head = config_value(config, "head_dim", config["hidden_size"] // heads)
    return {
        "context_length": config["max_position_embeddings"],
        "embedding_length": config["hidden_size"],
        "block_count": config["num_hidden_layers"],
        "feed_forward_length": _padded(config["intermediate_size"]),
        "head_count": heads,
        "head_count_kv": config_value(config, "num_key_value_heads", heads),
        "key_length": head,
        "value_length": head,
        "rope_dimension_count": head,
        "rope_freq_base": float(_rope(config).get("rope_theta", 10000.0)),
        "layer_norm_rms_eps": config["rms_norm_eps"],
        "vocab_size": config["vocab_size"],
    }


def tensors(packed: Source, requantize: bool, rounded: Rounding) -> Iterator[Tensor]:
    """Every tensor of the file. `requantize` rounds anew, by `rounded`, the weights of rotated
    layers, and those whose scales fp16 does not hold.
    """
    names = sorted({name.rpartition(".")[0] for name in packed.tensors if "quantizer" not in name})
    for name in names:
        target = gguf_name(name)
        yield f"{target}.weight", *_weight(packed, name, rounded if requantize else None)
        bias = packed.array(f"{name}.bias")
        if bias is not None:
            yield f"{target}.bias", "F32", _arranged(packed, name, bias)
    if packed.has_turned_head:
        yield "output.weight", *rounded(packed.head_weight(), blocks.Q8_0)
    if _rope(packed.config).get("rope_type") == "llama3":
        yield "rope_freqs.weight", "F32", _rope_factors(packed)


def _weight(packed: Source, name: str, rounded: Rounding | None) -> tuple[str, np.ndarray]:
    spec = packed.layers.get(name)
    if spec is None or isinstance(packed, FloatWeights):
        array = packed.tensors[f"{name}.weight"].float().numpy()
        return "F32", _arranged(packed, name, array)
    weight = packed.weight(name)
    if rounded is not None and (spec.rotation or not blocks.fits(weight)):
        values = _arranged(packed, name, packed.float_weight(name))
        return rounded(values, blocks.Q4_0 if spec.bits <= 4 else blocks.Q8_0)
    order = _order(packed, name, len(weight.levels))
    weight = weight if order is None else weight.rows(order)
    missing = _padded(spec.shape[0]) - spec.shape[0] if name.endswith(_WIDE) else 0
    if missing:
        levels = np.pad(weight.levels, ((0, missing), (0, 0)))
        scale = np.pad(weight.scale, ((0, missing), (0, 0)), constant_values=1.0)
        weight = Levels(levels, scale, weight.group_size, weight.bits)
    return blocks.encode(weight)


def _arranged(packed: Source, name: str, values: np.ndarray) -> np.ndarray:
    """A float tensor in llama.cpp's order of rows, padded like the packed ones."""
    order = _order(packed, name, len(values))
    values = values if order is None else values[order]
    rows = _padded(len(values)) - len(values) if name.endswith(_WIDE) else 0
    columns = 0
    if values.ndim == 2:
        columns = _padded(values.shape[1]) - values.shape[1]
    pads = [(0, rows), (0, columns)][: values.ndim]
    return np.ascontiguousarray(np.pad(values, pads)) if rows or columns else values


def _order(packed: Source, name: str, rows: int) -> np.ndarray | None:
    """The order of a projection's rows (heads x D), or None where it stays."""
    family = family_of(model_type(packed.config))
    if not family.interleaved or not name.endswith(("q_proj", "k_proj")):
        return None
    head = sizes(packed.config)["key_length"]
    return np.arange(rows).reshape(-1, 2, head // 2).swapaxes(1, 2).reshape(-1)


def gguf_name(name: str) -> str:
    """llama.cpp's name of a module."""
    if name in _ENDS:
        return _ENDS[name]
    number, _, part = name.removeprefix("model.layers.").partition(".")
    return f"blk.{number}.{_LAYER[part]}"


def _padded(size: int) -> int:
    return -(-size // blocks.BLOCK) * blocks.BLOCK


def _rope(config: dict[str, Any]) -> dict[str, Any]:
    return config_value(config, "rope_parameters", {})


def _rope_factors(packed: Source) -> np.ndarray:
    """What llama.cpp divides the frequencies by, for the scaling of Llama 3."""
    rope, head = _rope(packed.config), sizes(packed.config)["key_length"]
    frequency = rope["rope_theta"] ** -(np.arange(0, head, 2, dtype=np.float64) / head)
    length = 2 * np.pi / frequency
    low, high = rope["low_freq_factor"], rope["high_freq_factor"]
    part = rope["original_max_position_embeddings"] / length
    smooth = np.clip((part - low) / (high - low), 0, 1)
    return (1 / (smooth + (1 - smooth) / rope["factor"])).astype(np.float32)
