"""Sizes of a model: what benchmarks with random weights need, and the named ones."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from edgeqat.errors import UsageError, nearest


@dataclass(frozen=True)
class Shape:
    """Sizes of a decoder of the Llama family; context is its longest sequence."""

    vocabulary: int
    hidden: int
    layers: int
    heads: int
    kv_heads: int
    ffn: int
    head_dim: int
    context: int = 2048
    tied: bool = False

    @classmethod
    def of_config(cls, config: dict[str, Any]) -> Shape:
        """Sizes of a Hugging Face config.json."""
        heads = config["num_attention_heads"]
        return cls(
            config["vocab_size"],
            config["hidden_size"],
            config["num_hidden_layers"],
            heads,
            config.get("num_key_value_heads") or heads,
            config["intermediate_size"],
            config.get("head_dim") or config["hidden_size"] // heads,
            config["max_position_embeddings"],
            bool(config.get("tie_word_embeddings")),
        )

    def config(self) -> dict[str, Any]:
        """The same as fields of a Hugging Face LlamaConfig."""
        return {
            "vocab_size": self.vocabulary,
            "hidden_size": self.hidden,
            "num_hidden_layers": self.layers,
            "num_attention_heads": self.heads,
            "num_key_value_heads": self.kv_heads,
            "intermediate_size": self.ffn,
            "head_dim": self.head_dim,
            "max_position_embeddings": self.context,
            "tie_word_embeddings": self.tied,
        }

    @property
    def weights(self) -> int:
        """Elements of the matrices that a decoding step multiplies with, the head included."""
        attention = 2 * self.hidden * self.head_dim * (self.heads + self.kv_heads)
        blocks = self.layers * (attention + 3 * self.hidden * self.ffn)
        return blocks + self.vocabulary * self.hidden


# kernels/src/random.cc has the same. llama-8m: docs/results.md; llama-58m: EdgeQAT 2402.10787,
# section 4.1
SHAPES = {
    "llama-8m": Shape(8192, 256, 8, 4, 2, 688, 64, tied=True),
    "llama-58m": Shape(16000, 512, 16, 8, 8, 1024, 64),
    "smollm-135m": Shape(49152, 576, 30, 9, 3, 1536, 64, tied=True),
    "tinyllama-1.1b": Shape(32000, 2048, 22, 32, 4, 5632, 64),
}


def named(name: str) -> Shape:
    """A known shape; an unknown name suggests the nearest."""
    if name not in SHAPES:
        raise UsageError(f"shape: '{name}' is not known; {nearest(name, list(SHAPES))}")
    return SHAPES[name]
