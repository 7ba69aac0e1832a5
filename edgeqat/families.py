"""One row for each model type of transformers that we quantize: its names and who else runs it.

A new family is a row here; the engine knows its own in kernels/src/config.cc. Code that meets
networks without a model type asks for the names of all rows (PROJECTIONS, HEADS, EMBEDDINGS).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

LLAMA = "llama"  # llama.cpp's architecture that interleaves the heads of queries and keys
_PRE_NORMS = {  # norms of a layer, and the linear layers that read them
    "input_layernorm": ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"),
    "post_attention_layernorm": ("mlp.gate_proj", "mlp.up_proj"),
}


@dataclass(frozen=True)
class Family:
    """What differs between model types; the names are Llama's unless a row says otherwise."""

    projections: tuple[str, ...] = ("q_proj", "k_proj", "v_proj")  # one name: q, k, v in one layer
    conv1d: bool = False  # linear layers are Conv1D, with weights stored (I, O)
    norms: Mapping[str, tuple[str, ...]] = field(default_factory=lambda: _PRE_NORMS)  # RMS; or none
    writers: tuple[str, ...] = ("self_attn.o_proj", "mlp.down_proj")  # into the residual stream
    head: str = "lm_head"
    embeddings: tuple[str, ...] = ("embed_tokens",)
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
    "llama": Family(llama_cpp=LLAMA, from_gguf=LLAMA, engine=True, compressed_tensors=True),
    "mistral": Family(llama_cpp=LLAMA, from_gguf=LLAMA, engine=True, compressed_tensors=True),
    "qwen2": Family(llama_cpp="qwen2", from_gguf="qwen2", engine=True, compressed_tensors=True),
    "qwen3": Family(llama_cpp="qwen3", from_gguf="qwen3", engine=True, compressed_tensors=True),
    "smollm3": Family(compressed_tensors=True),
}
_UNKNOWN = Family(norms={}, writers=())
PROJECTIONS = tuple(dict.fromkeys(family.projections for family in FAMILIES.values()))
HEADS = frozenset(family.head for family in FAMILIES.values())
EMBEDDINGS = frozenset(name for family in FAMILIES.values() for name in family.embeddings)


def family_of(model_type: Any) -> Family:
    """The row of a model type; of an unknown one Llama's names, and nothing runs it."""
    return FAMILIES.get(str(model_type), _UNKNOWN)


def positions_of(config: Mapping[str, Any]) -> int:
    """The longest sequence of a language model, by its config.json."""
    longest: int = config[family_of(config.get("model_type")).positions]
    return longest
