"""GGUF files: packed folders for llama.cpp, and float models for its own quantizer. What a file
holds is said in export/llama and export/vocabulary.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np

from edgeqat.errors import UsageError
from edgeqat.export import llama, vocabulary
from edgeqat.export.float_weights import FloatWeights
from edgeqat.export.packed import PackedFolder, refuse
from edgeqat.export.vocabulary import Vocabulary
from edgeqat.output import whole_file
from edgeqat.scheme import FLOAT_BITS, Scheme

_WAY = "quantize it with --target gguf, or add --requantize to round it anew"
_FILE_TYPES = {4: 2, 8: 7}  # mostly Q4_0, mostly Q8_0
_MOSTLY_F16 = 1
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
        _finish(writer, llama.tensors(packed, requantize, rounded))
    cache = llama.KV_TYPES.get(packed.scheme.kv_bits, "f16")
    return [f"llama-cli -m {output} -fa on -ctk {cache} -ctv {cache} -p 'Once upon a time'"]


def write_float(output: Path, model: FloatWeights) -> None:
    """Write a float model with its matrices in fp16 and without a tokenizer: whoever reads the file
    gives token ids. Raises UsageError for a model that llama.cpp does not hold.
    """
    import gguf

    hopeless = llama.unsupported(model.config, Scheme(FLOAT_BITS, FLOAT_BITS, FLOAT_BITS))
    if hopeless is not None:
        raise UsageError(f"gguf: {hopeless}; llama.cpp cannot hold this model")
    with whole_file(output) as temporary:
        writer = gguf.GGUFWriter(temporary, llama.architecture(model))
        writer.add_file_type(_MOSTLY_F16)
        _write_sizes(writer, model.config)
        writer.add_tokenizer_model("none")
        tensors = llama.tensors(model, False, rounded)
        _finish(writer, (_halved(*tensor) for tensor in tensors))


def _halved(name: str, kind: str, values: np.ndarray) -> llama.Tensor:
    """A tensor, in fp16 where it is a matrix."""
    return (name, "F16", values.astype(np.float16)) if values.ndim == 2 else (name, kind, values)


def check_installed() -> None:
    """Refuse the export where the gguf package is missing."""
    if find_spec("gguf") is None:
        raise UsageError("gguf: its package is not installed; pip install 'edgeqat[export]'")


def rounded(values: np.ndarray, kind: str) -> tuple[str, np.ndarray]:
    """Type and bytes of float values (O, I), rounded by the package's own rule."""
    import gguf

    return kind, gguf.quants.quantize(values, getattr(gguf.GGMLQuantizationType, kind))


def _finish(writer: Any, tensors: Iterable[llama.Tensor]) -> None:
    """Add the tensors, write everything and close the file."""
    import gguf

    for name, kind, values in tensors:
        raw = None if kind == "F32" else getattr(gguf.GGMLQuantizationType, kind)
        writer.add_tensor(name, np.ascontiguousarray(values), raw_dtype=raw)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def _write_sizes(writer: Any, config: dict[str, Any]) -> None:
    for name, value in llama.sizes(config).items():
        getattr(writer, f"add_{name}")(value)


def _write_header(writer: Any, packed: PackedFolder, words: Vocabulary) -> None:
    scheme = packed.scheme
    writer.add_name(packed.folder.resolve().name)
    writer.add_quantization_version(2)
    writer.add_file_type(_FILE_TYPES[4 if scheme.weight_bits <= 4 else 8])
    writer.add_string("edgeqat.scheme", str(scheme))
    _write_sizes(writer, packed.config)
    words.write(writer)
