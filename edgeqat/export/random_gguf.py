"""Random weights of a shape as a GGUF file, to measure llama.cpp with.

Q4_0 is an fp16 scale d and 32 codes of 4 bits, w = d (code - 8). Every matrix of a Q4_0 file is
Q4_0, the head too, which is the fastest llama.cpp can be at 4 bits.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np

from edgeqat.runtime.shape import Shape

TYPES = ("Q4_0", "F16")
_BLOCK = 32  # weights that share a scale
_SCALE = 4e-3
_EPSILON = 1e-5


def write_random(path: Path, shape: Shape, kind: str, seed: int = 0) -> None:
    """A Llama model with random weights of type `kind` (one of TYPES)."""
    import gguf

    # gguf counts the bytes of a tensor from these, before it asks for them one by one
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_context_length(shape.context)
    writer.add_embedding_length(shape.hidden)
    writer.add_block_count(shape.layers)
    writer.add_feed_forward_length(shape.ffn)
    writer.add_head_count(shape.heads)
    writer.add_head_count_kv(shape.kv_heads)
    writer.add_key_length(shape.head_dim)
    writer.add_value_length(shape.head_dim)
    writer.add_rope_dimension_count(shape.head_dim)
    writer.add_layer_norm_rms_eps(_EPSILON)
    writer.add_vocab_size(shape.vocabulary)
    writer.add_tokenizer_model("none")
    types = gguf.GGMLQuantizationType
    tensors = dict(_tensors(shape))
    for name, size in tensors.items():
        if len(size) == 1:
            writer.add_tensor_info(name, size, np.dtype(np.float32), 4 * size[0], types.F32)
        elif kind == "F16":
            writer.add_tensor_info(name, size, np.dtype(np.float16), 2 * size[0] * size[1])
        else:
            packed = (size[0], size[1] // _BLOCK * (2 + _BLOCK // 2))
            count = packed[0] * packed[1]
            writer.add_tensor_info(name, packed, np.dtype(np.uint8), count, types.Q4_0)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_ti_data_to_file()
    random = np.random.default_rng(seed)
    for size in tensors.values():
        writer.write_tensor_data(_values(random, size, kind))
    writer.close()


def _tensors(shape: Shape) -> Iterator[tuple[str, tuple[int, ...]]]:
    """Names and sizes (outputs, inputs) as llama.cpp knows them."""
    queries, keys = shape.heads * shape.head_dim, shape.kv_heads * shape.head_dim
    yield "token_embd.weight", (shape.vocabulary, shape.hidden)
    for layer in range(shape.layers):
        block = f"blk.{layer}"
        yield f"{block}.attn_norm.weight", (shape.hidden,)
        yield f"{block}.attn_q.weight", (queries, shape.hidden)
        yield f"{block}.attn_k.weight", (keys, shape.hidden)
        yield f"{block}.attn_v.weight", (keys, shape.hidden)
        yield f"{block}.attn_output.weight", (shape.hidden, queries)
        yield f"{block}.ffn_norm.weight", (shape.hidden,)
        yield f"{block}.ffn_gate.weight", (shape.ffn, shape.hidden)
        yield f"{block}.ffn_up.weight", (shape.ffn, shape.hidden)
        yield f"{block}.ffn_down.weight", (shape.hidden, shape.ffn)
    yield "output_norm.weight", (shape.hidden,)
    if not shape.tied:
        yield "output.weight", (shape.vocabulary, shape.hidden)


def _values(random: np.random.Generator, size: tuple[int, ...], kind: str) -> np.ndarray:
    if len(size) == 1:
        return np.ones(size, np.float32)
    if kind == "F16":  # signs and mantissas at random, 0.008 to 0.016
        bits = np.frombuffer(random.bytes(2 * size[0] * size[1]), np.uint16)
        return ((bits & 0x83FF) | 0x2000).view(np.float16).reshape(size)
    blocks = size[1] // _BLOCK
    values = np.empty((size[0], blocks, 2 + _BLOCK // 2), np.uint8)
    values[..., :2] = np.array([_SCALE], np.float16).view(np.uint8)
    count = size[0] * blocks * _BLOCK // 2
    values[..., 2:] = np.frombuffer(random.bytes(count), np.uint8).reshape(size[0], blocks, -1)
    return values.reshape(size[0], -1)
