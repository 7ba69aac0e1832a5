"""llama.cpp through llama-cpp-python: a contender of `edgeqat bench`, and the logits of a file.

Flash attention is on for an empty sequence and off behind a depth, which is faster each time; it
stays on where values are quantized, which need it. Both need a context of their own, with all of
its cache: the memory reported is that with one of them.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from edgeqat.bench.sequence import Steps, process_peak

KV_TYPES = {"f16": 1, "q4_0": 2, "q8_0": 8}  # enum ggml_type
_BATCH = 512


class LlamaCpp(Steps):
    """A GGUF file in llama.cpp; kv is one of KV_TYPES. Without `extra_buffers` weights stay as they
    are in the file: no layout of AMX, with which it crashes in some virtual machines.
    """

    def __init__(
        self,
        path: Path,
        threads: int,
        context: int,
        kv: str,
        vocabulary: int,
        extra_buffers: bool = True,
    ) -> None:
        import llama_cpp

        self._api = llama_cpp
        self.vocabulary = vocabulary
        self._silent = llama_cpp.llama_log_callback(lambda level, text, data: None)
        llama_cpp.llama_log_set(self._silent, None)
        llama_cpp.llama_backend_init()
        options = llama_cpp.llama_model_default_params()
        options.use_extra_bufts = extra_buffers
        self._model = llama_cpp.llama_model_load_from_file(os.fsencode(path), options)
        self._settings = kv, threads, context
        flash = llama_cpp.LLAMA_FLASH_ATTN_TYPE_ENABLED
        self._deep = llama_cpp.LLAMA_FLASH_ATTN_TYPE_DISABLED if kv == "f16" else flash
        self._flat = self._active = flash
        self._contexts: dict[int, Any] = {}
        self._positions: dict[int, int] = {}
        self._peak: int | None = None  # before a second context
        self._used = False
        self._open(flash)
        self.isa = "llama.cpp" if extra_buffers else "llama.cpp without extra buffers"

    def _open(self, flash: int) -> None:
        kv, threads, context = self._settings
        options = self._api.llama_context_default_params()
        options.n_ctx = -(-context // 256) * 256
        options.n_batch = options.n_ubatch = _BATCH
        options.n_threads = options.n_threads_batch = threads
        options.type_k = options.type_v = KV_TYPES[kv]
        options.flash_attn_type = flash
        opened = self._api.llama_init_from_model(self._model, options)
        if not opened:
            raise RuntimeError("llama.cpp refused the model")
        self._contexts[flash], self._positions[flash] = opened, 0

    def peak_rss(self) -> int:
        return process_peak() if self._peak is None else self._peak

    def seek(self, depth: int) -> None:
        """Make the sequence `depth` tokens long."""
        before, self._active = self._active, self._deep if depth else self._flat
        if self._active not in self._contexts:
            if self._used:
                self._peak = process_peak()
            else:
                self._api.llama_free(self._contexts.pop(before))
            self._open(self._active)
        if depth < self.position:
            memory = self._api.llama_get_memory(self._contexts[self._active])
            self._api.llama_memory_seq_rm(memory, 0, depth, -1)
            self._positions[self._active] = depth
        self.prefill(depth - self.position)

    @property
    def position(self) -> int:
        """Tokens of the sequence so far."""
        return self._positions[self._active]

    def append(self, ids: list[int]) -> None:
        """Append token ids in the largest batches that llama.cpp takes."""
        self._used = True
        for start in range(0, len(ids), _BATCH):
            self._decode(ids[start : start + _BATCH])

    def _decode(self, ids: list[int]) -> None:
        tokens = (self._api.llama_token * len(ids))(*ids)
        batch = self._api.llama_batch_get_one(tokens, len(ids))
        context = self._contexts[self._active]
        if self._api.llama_decode(context, batch) != 0:
            raise RuntimeError("llama.cpp could not decode")
        self._api.llama_synchronize(context)
        self._positions[self._active] += len(ids)


def logits(path: Path, ids: Tensor, kv: str, threads: int = 1) -> Tensor:
    """Logits (B, T, V) of a GGUF file on blocks ids (B, T), flash attention on."""
    import llama_cpp

    kind = KV_TYPES[kv]
    opened = llama_cpp.Llama(
        str(path), n_ctx=max(ids.shape[1], 128), logits_all=True, verbose=False, n_threads=threads,
        n_threads_batch=threads, flash_attn=True, type_k=kind, type_v=kind,
    )  # fmt: skip
    outputs = []
    for row in ids.tolist():
        opened.reset()
        opened.eval(row)
        outputs.append(torch.from_numpy(opened.scores[: len(row)].copy()))
    opened.close()
    return torch.stack(outputs)
