"""llama.cpp through llama-cpp-python: its own quantizer, and the logits of a file for every token.

Weights stay as they are in the file: the layout for AMX crashes in some virtual machines, and speed
is not measured here. Flash attention is on, which a quantized cache needs. A block is computed in
one batch on an empty cache; with a quantized cache attention reads the rounded keys and values.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from edgeqat.bench.llama_cpp import KV_TYPES
from edgeqat.errors import EdgeQATError
from edgeqat.output import whole_file

_PAGE = 256  # llama.cpp's caches are multiples of it


def quantize(
    source: Path, target: Path, kind: str, importance: dict[str, Tensor] | None, threads: int
) -> None:
    """Write the F16 file `source` as one of type `kind` (`Q4_K_M`), by llama.cpp's quantizer;
    importance: mean squared inputs of each layer, by the name of its weight.
    """
    api = _api()
    options = api.llama_model_quantize_default_params()
    options.ftype = getattr(api, f"LLAMA_FTYPE_MOSTLY_{kind}")
    options.nthread = threads
    entries, kept = _entries(api, importance or {})
    if importance is not None:
        options.imatrix = entries
    with whole_file(target) as part:
        code = api.llama_model_quantize(os.fsencode(source), os.fsencode(part), options)
        del kept
        if code != 0:
            raise _refused(f"to quantize to {kind}")


def _entries(api: Any, importance: dict[str, Tensor]) -> tuple[Any, list[Any]]:
    """llama.cpp's array of named matrices, ended by an empty one, and what it points to."""
    kind = api.llama_model_imatrix_data
    entries = (kind * (len(importance) + 1))()
    pointer = dict(kind._fields_)["data"]
    kept: list[Any] = []
    for entry, (name, values) in zip(entries, importance.items(), strict=False):
        array, text = np.ascontiguousarray(values.numpy(), np.float32), name.encode()
        kept += [array, text]
        entry.name, entry.data, entry.size = text, array.ctypes.data_as(pointer), array.size
    return entries, kept


@contextmanager
def opened(file: Path, context: int, cache: str, threads: int) -> Iterator[Any]:
    """A function from ids (T,) to logits (T, V) of a GGUF file, with a cache of a type `cache`."""
    api = _api()
    settings = api.llama_model_default_params()
    settings.use_extra_bufts = False
    model = api.llama_model_load_from_file(os.fsencode(file), settings)
    if not model:
        raise _refused("the file")
    options = api.llama_context_default_params()
    options.n_ctx = -(-context // _PAGE) * _PAGE
    options.n_batch = options.n_ubatch = options.n_ctx
    options.n_threads = options.n_threads_batch = threads
    options.type_k = options.type_v = KV_TYPES[cache]
    options.flash_attn_type = api.LLAMA_FLASH_ATTN_TYPE_ENABLED
    runner = api.llama_init_from_model(model, options)
    if not runner:
        raise _refused(f"a KV cache of type {cache}")
    vocabulary = api.llama_vocab_n_tokens(api.llama_model_get_vocab(model))
    batch = api.llama_batch_init(options.n_ctx, 0, 1)

    def logits(ids: Tensor) -> Tensor:
        api.llama_memory_clear(api.llama_get_memory(runner), True)
        batch.n_tokens = len(ids)
        for position, token in enumerate(ids.tolist()):
            batch.token[position], batch.pos[position] = token, position
            batch.n_seq_id[position], batch.seq_id[position][0] = 1, 0
            batch.logits[position] = 1
        if api.llama_decode(runner, batch) != 0:
            raise EdgeQATError("llama.cpp could not decode")
        values = np.ctypeslib.as_array(api.llama_get_logits(runner), (len(ids), vocabulary))
        return torch.from_numpy(values.copy())

    try:
        yield logits
    finally:
        api.llama_batch_free(batch)
        api.llama_free(runner)
        api.llama_model_free(model)


_told: list[str] = []  # errors of its log
_listeners: list[Any] = []
_ERROR = 4  # enum ggml_log_level


def _refused(what: str) -> EdgeQATError:
    """What llama.cpp refused, with the first error of its log."""
    reason = " ".join(_told[0].split()) if _told else "without a word"
    return EdgeQATError(f"llama.cpp refused {what} ({reason})")


def _listen(level: int, text: bytes, data: Any) -> None:
    """Keep errors, drop the rest."""
    if level == _ERROR:
        _told.append(text.decode(errors="replace"))


def _api() -> Any:
    """llama_cpp, whose log goes to _listen."""
    import llama_cpp

    if not _listeners:
        _listeners.append(llama_cpp.llama_log_callback(_listen))
        llama_cpp.llama_log_set(_listeners[0], None)
        llama_cpp.llama_backend_init()
    return llama_cpp
