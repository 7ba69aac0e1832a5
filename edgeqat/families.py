"""One row for each model type of transformers that we quantize: its names and who else runs it.

A new family is a row here; the engine knows its own in kernels/src/config.cc. Code that meets
networks without a model type asks for the names of all rows (PROJECTIONS, HEADS, EMBEDDINGS).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

LLAMA = "llama"  # llama.cpp's architecture that interleaves the heads of queries and keys
_HEADS = ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj")
_PRE_NORMS = {  # norms of a layer, and the linear layers that read them
    "input_layernorm": _HEADS,
    "post_attention_layernorm": ("mlp.gate_proj", "mlp.up_proj"),
}
_HEAD_NORMS = ("q_norm", "k_norm")


@dataclass(frozen=True)
class Family:
    """What differs between model types; the names are Llama's unless a row says otherwise."""

    projections: tuple[str, ...] = ("q_proj", "k_proj", "v_proj")  # one name: q, k, v in one layer
    conv1d: bool = False  # linear layers are Conv1D, with weights stored (I, O)
    # RMS norms of the residual stream by the layers that read them; none: it cannot be rotated
    norms: Mapping[str, tuple[str, ...]] = field(default_factory=lambda: _PRE_NORMS)
    writers: tuple[str, ...] = ("self_attn.o_proj", "mlp.down_proj")  # into the residual stream
    last_norm: str = "norm"
    head_norms: tuple[str, ...] = ()  # of queries and keys
    gain: float = 0.0  # of a norm whose weight is 0
    adjacent: bool = False  # RoPE turns neighbours, x0 x1, and not the halves of a head
    head: str = "lm_head"
    embeddings: tuple[str, ...] = ("embed_tokens",)
    windows: bool = False  # layers have a sliding window where the config says so
    needs_bos: bool = False  # predicts badly where a text does not begin with it
    positions: str = "max_position_embeddings"  # config.json's name of the longest sequence
    llama_cpp: str | None = None  # llama.cpp's architecture; None: no GGUF file is written
    from_gguf: str | None = None  # that of GGUF files that transformers reads; None: it reads none
    engine: bool = False  # kernels/src/config.cc runs it
    compressed_tensors: bool = False  # runtimes of that format know it

    @property
    def interleaved(self) -> bool:
        """Whether llama.cpp orders the rows of a query or key head as x0 y0 x1 y1 ..."""
        return self.llama_cpp == LLAMA


FAMILIES = {
    "gpt2": Family(
        projections=("c_attn",),
        conv1d=True,
        norms={},
        writers=(),
        embeddings=("wte", "wpe"),
        positions="n_positions",
        from_gguf="gpt2",
    ),
    "gpt_neox": Family(
        projections=("query_key_value",),
        norms={},
        writers=(),
        embeddings=("embed_in",),
    ),
    "llama": Family(llama_cpp=LLAMA, from_gguf=LLAMA, engine=True, compressed_tensors=True),
    "mistral": Family(
        windows=True, llama_cpp=LLAMA, from_gguf=LLAMA, engine=True, compressed_tensors=True
    ),
    "ministral3": Family(windows=True, engine=True),
    "qwen2": Family(
        windows=True, llama_cpp="qwen2", from_gguf="qwen2", engine=True, compressed_tensors=True
    ),
    "qwen3": Family(
        windows=True,
        head_norms=_HEAD_NORMS,
        llama_cpp="qwen3",
        from_gguf="qwen3",
        engine=True,
        compressed_tensors=True,
    ),
    "smollm3": Family(windows=True, compressed_tensors=True, engine=True),
    "gemma3_text": Family(
        norms={},
        head_norms=_HEAD_NORMS,
        gain=1.0,
        windows=True,
        needs_bos=True,
        from_gguf="gemma3",
        engine=True,
    ),
    "granite": Family(engine=True),
    "granitemoehybrid": Family(
        norms={"input_layernorm": _HEADS, "post_attention_layernorm": ("shared_mlp.input_linear",)},
        writers=("self_attn.o_proj", "shared_mlp.output_linear"),
        engine=True,
    ),
    "olmo2": Family(norms={}, head_norms=_HEAD_NORMS, engine=True),
    "olmo3": Family(norms={}, head_norms=_HEAD_NORMS, windows=True, engine=True),
    "exaone4": Family(norms={}, head_norms=_HEAD_NORMS, windows=True, engine=True),
    "ernie4_5": Family(adjacent=True, engine=True),
    "arcee": Family(
        norms={**_PRE_NORMS, "post_attention_layernorm": ("mlp.up_proj",)}, engine=True
    ),
    "hunyuan_v1_dense": Family(head_norms=("query_layernorm", "key_layernorm"), engine=True),
    "phi3": Family(
        projections=("qkv_proj",),
        norms={
            "input_layernorm": ("self_attn.qkv_proj",),
            "post_attention_layernorm": ("mlp.gate_up_proj",),
        },
        windows=True,
        engine=True,
    ),
    "lfm2": Family(
        norms={
            "operator_norm": (*_HEADS, "conv.in_proj"),
            "ffn_norm": ("feed_forward.w1", "feed_forward.w3"),
        },
        writers=("self_attn.out_proj", "conv.out_proj", "feed_forward.w2"),
        last_norm="embedding_norm",
        head_norms=("q_layernorm", "k_layernorm"),
    ),
}
_STATE = "its layers keep a recurrent state, which no packed cache holds"
_EXPERTS = "it is a mixture of experts, whose weights lie in one tensor"
_LATENT = "its cache holds latent vectors instead of keys and values"
_LAYERS = "its layers have embeddings or caches of their own or of others"
_REASONS = {  # why those that resemble a family are refused, by a part of their name
    "qwen3_5": _STATE, "qwen3_next": _STATE, "mamba": _STATE, "jamba": _STATE, "bamba": _STATE,
    "zamba": _STATE, "falcon_h1": _STATE, "nemotron_h": _STATE, "rwkv": _STATE,
    "recurrent": _STATE, "olmo_hybrid": _STATE,
    "moe": _EXPERTS, "mixtral": _EXPERTS, "gpt_oss": _EXPERTS, "dbrx": _EXPERTS,
    "llama4": _EXPERTS, "deepseek": _EXPERTS,
    "minicpm3": _LATENT, "youtu": _LATENT,
    "gemma4": _LAYERS, "gemma3n": _LAYERS,
}  # fmt: skip
_UNKNOWN = Family(norms={}, writers=())
PROJECTIONS = tuple(dict.fromkeys(family.projections for family in FAMILIES.values()))
HEADS = frozenset(family.head for family in FAMILIES.values())
EMBEDDINGS = frozenset(name for family in FAMILIES.values() for name in family.embeddings)


def family_of(model_type: Any) -> Family:
    """The row of a model type; of an unknown one Llama's names, and nothing runs it."""
    return FAMILIES.get(str(model_type), _UNKNOWN)


def refusal(config: Mapping[str, Any]) -> str | None:
    """Why a language model is not quantized, by its config.json; None: it is."""
    kind = str(config.get("model_type"))
    reason = None
    if kind == "granitemoehybrid":
        kinds = config.get("layers_block_type") or config.get("layer_types") or ()
        if config.get("num_local_experts"):
            reason = _EXPERTS
        elif any(str(one).removeprefix("full_") != "attention" for one in kinds):
            reason = _STATE
    elif kind not in FAMILIES:
        reason = next((text for part, text in _REASONS.items() if part in kind), "")
    if reason is None:
        return None
    known = ", ".join(FAMILIES)
    why = f" ({reason})" if reason else ""
    return f"architecture '{kind}' is not supported{why}; supported: {known}"


def window_of(config: Any, layer: int) -> int | None:
    """The sliding window of a layer of transformers' config, in tokens; None: it sees all."""
    window: int | None = getattr(config, "sliding_window", None)
    types = getattr(config, "layer_types", None)
    if not family_of(getattr(config, "model_type", None)).windows or window is None:
        return None
    return window if types is None or types[layer] == "sliding_attention" else None


def positions_of(config: Mapping[str, Any]) -> int:
    """The longest sequence of a language model, by its config.json."""
    longest: int = config[family_of(config.get("model_type")).positions]
    return longest
