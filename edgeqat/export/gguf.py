"""GGUF files: packed folders for llama.cpp, and random weights of a given shape to measure it on.

The only file that knows the gguf package. What a file holds is export/llama's and
export/vocabulary's; Q4_0 is an fp16 scale d and 32 codes of 4 bits, w = d (code - 8). Every matrix
of a random Q4_0 file is Q4_0, the head too, which is the fastest llama.cpp can be at 4 bits.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np

from edgeqat.errors import UsageError
from edgeqat.export import llama, vocabulary
from edgeqat.export.packed import PackedFolder, refuse
from edgeqat.export.vocabulary import Vocabulary
from edgeqat.output import whole_file
from edgeqat.runtime.shape import Shape

TYPES = ("Q4_0", "F16")
_BLOCK = 32  # weights that share a scale
_SCALE = 4e-3
_EPSILON = 1e-5
_WAY = "quantize it with --target gguf, or add --requantize to round it anew"
_FILE_TYPES = {4: 2, 8: 7}  # mostly Q4_0, mostly Q8_0
_logger = logging.getLogger("edgeqat")


def export(folder: Path, output: Path, requantize: bool = False) -> list[str]:
    """Write a packed folder as a GGUF file, its learned levels and scales as they are; returns
    lines that say how to run it. Raises an EdgeQATError in one line.

    What llama.cpp cannot hold exactly is refused, or with `requantize` rounded anew.
    """
    import gguf

    packed = PackedFolder(folder)
    hopeless = llama.unsupported(packed.config, packed.scheme)
    if hopeless is not None:
        raise UsageError(f"gguf: {hopeless}; this folder cannot be exported")
    reasons = llama.reasons(packed)
    if not requantize:
        refuse("gguf", reasons, _WAY)
    for reason in reasons:
        _logger.warning("gguf: %s; the file is not what was trained", reason)
    words = vocabulary.read(folder, packed.config["vocab_size"])
    with whole_file(output) as temporary:
        writer = gguf.GGUFWriter(temporary, llama.architecture(packed))
        _write_header(writer, packed, words)
        types = gguf.GGMLQuantizationType
        for name, kind, values in llama.tensors(packed, requantize):
            raw = None if kind == "F32" else getattr(types, kind)
            writer.add_tensor(name, np.ascontiguousarray(values), raw_dtype=raw)
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
        writer.close()
    cache = llama.KV_TYPES.get(packed.scheme.kv_bits, "f16")
    return [f"llama-cli -m {output} -fa on -ctk {cache} -ctv {cache} -p 'Once upon a time'"]


def check_installed() -> None:
    """Refuse the export where the gguf package is missing."""
    if find_spec("gguf") is None:
        raise UsageError("gguf: its package is not installed; pip install 'edgeqat[export]'")


def rounded(values: np.ndarray, kind: str) -> tuple[str, np.ndarray]:
    """Type and bytes of float values (O, I), rounded by the package's own rule."""
    import gguf

    return kind, gguf.quants.quantize(values, getattr(gguf.GGMLQuantizationType, kind))


def _write_header(writer: Any, packed: PackedFolder, words: Vocabulary) -> None:
    scheme = packed.scheme
    writer.add_name(packed.folder.resolve().name)
    writer.add_quantization_version(2)
    writer.add_file_type(_FILE_TYPES[4 if scheme.weight_bits <= 4 else 8])
    writer.add_string("edgeqat.scheme", str(scheme))
    for name, value in llama.sizes(packed.config).items():
        getattr(writer, f"add_{name}")(value)
    writer.add_tokenizer_model(words.model)
    writer.add_tokenizer_pre(words.split)
    writer.add_token_list(words.tokens)
    writer.add_token_types(words.types)
    if words.scores is not None:
        writer.add_token_scores(words.scores)
        writer.add_add_space_prefix(words.prefix)
    if words.merges:
        writer.add_token_merges(words.merges)
    for name, number in words.special.items():
        getattr(writer, f"add_{name}_token_id")(number)
    writer.add_add_bos_token(words.adds_bos)
    if words.chat_template:
        writer.add_chat_template(words.chat_template)


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
