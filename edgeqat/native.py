"""The C++ library through ctypes: the one file that knows the C ABI (kernels/include/edgeqat.h),
and the C library's heap.

The library is the one EDGEQAT_LIBRARY names, or the one built into the wheel; without it `library`
gives None and says so once. Arrays are numpy arrays, C-contiguous and of exactly the C type.

Legend: O rows, I columns, N tokens, V vocabulary.
"""

from __future__ import annotations

import ctypes
import logging
import os
from contextlib import suppress
from ctypes import (
    POINTER,
    c_char_p,
    c_double,
    c_float,
    c_int,
    c_int32,
    c_int64,
    c_uint64,
    c_void_p,
)
from functools import lru_cache
from pathlib import Path
from typing import Any, NoReturn

import numpy as np

from edgeqat.errors import EdgeQATError, FormatError, UsageError

UNSUPPORTED = 2  # EDGEQAT_UNSUPPORTED: a sound folder that only torch runs
_logger = logging.getLogger("edgeqat")


class UnsupportedModel(EdgeQATError):
    """A packed folder that the native engine does not run; torch does."""


class Info(ctypes.Structure):
    """edgeqat_info."""

    _fields_ = (
        ("vocabulary", c_int64),
        ("context", c_int64),
        ("position", c_int64),
        ("matrix_bytes", c_int64),
        ("threads", c_int32),
        ("isa", c_char_p),
        ("layers", c_int64),
        ("hidden", c_int64),
        ("embedding_bytes", c_int64),
    )


class Part(ctypes.Structure):
    """edgeqat_part."""

    _fields_ = (("sequence", c_void_p), ("ids", c_void_p), ("count", c_int64), ("wanted", c_int64))


class Team(ctypes.Structure):
    """edgeqat_team."""

    _fields_ = (("run", c_void_p), ("threads", c_int32))


_SIGNATURES: dict[str, tuple[Any, list[Any]]] = {
    "edgeqat_error": (c_char_p, []),
    "edgeqat_last_status": (c_int, []),
    "edgeqat_isa": (c_char_p, [c_int, POINTER(c_int)]),
    "edgeqat_active_isa": (c_char_p, []),
    "edgeqat_choose_isa": (c_int, [c_char_p]),
    "edgeqat_open": (c_void_p, [c_char_p, c_int, c_int64, c_int]),
    "edgeqat_open_random": (c_void_p, [c_char_p, c_char_p, c_int, c_int64, c_int]),
    "edgeqat_close": (None, [c_void_p]),
    "edgeqat_get_info": (c_int, [c_void_p, POINTER(Info)]),
    "edgeqat_forward": (c_int, [c_void_p, c_void_p, c_int64, c_void_p, c_int]),
    "edgeqat_trace": (c_int, [c_void_p, c_void_p, c_int64, c_void_p, c_void_p]),
    "edgeqat_is_stop": (c_int, [c_void_p, c_int32]),
    "edgeqat_rewind": (c_int, [c_void_p, c_int64]),
    "edgeqat_sequence_new": (c_void_p, [c_void_p, c_int64]),
    "edgeqat_sequence_free": (None, [c_void_p]),
    "edgeqat_sequence_position": (c_int64, [c_void_p]),
    "edgeqat_sequence_rewind": (c_int, [c_void_p, c_int64]),
    "edgeqat_forward_parts": (c_int, [c_void_p, c_void_p, c_int64, c_void_p]),
    "edgeqat_cores": (c_int, []),
    "edgeqat_read_speed": (c_int, [c_int64, c_int, POINTER(c_double)]),
    "edgeqat_sampler_new": (c_void_p, [c_float, c_int64, c_float, c_uint64]),
    "edgeqat_sample": (c_int32, [c_void_p, c_void_p, c_int64]),
    "edgeqat_sampler_free": (None, [c_void_p]),
    "edgeqat_generator_new": (
        c_void_p,
        [c_void_p] * 3 + [c_int64, c_void_p, c_int64, c_int64, c_int],
    ),
    "edgeqat_generator_next": (c_int32, [c_void_p]),
    "edgeqat_generator_end": (c_int, [c_void_p]),
    "edgeqat_generator_guesses": (c_int, [c_void_p] * 3),
    "edgeqat_generator_free": (None, [c_void_p]),
    "edgeqat_tokenizer_open": (c_void_p, [c_char_p]),
    "edgeqat_tokenizer_close": (None, [c_void_p]),
    "edgeqat_encode": (c_int64, [c_void_p, c_char_p, c_int64, c_int, c_void_p, c_int64]),
    "edgeqat_decode": (c_int64, [c_void_p, c_void_p, c_int64, c_int, c_void_p, c_int64]),
    "edgeqat_stream_new": (c_void_p, [c_void_p, c_int]),
    "edgeqat_stream_next": (c_void_p, [c_void_p, c_int32, c_void_p]),
    "edgeqat_stream_end": (c_void_p, [c_void_p, c_void_p]),
    "edgeqat_stream_free": (None, [c_void_p]),
    "edgeqat_chat_open": (c_void_p, [c_char_p]),
    "edgeqat_chat_close": (None, [c_void_p]),
    "edgeqat_chat_apply": (c_int64, [c_void_p, c_char_p, c_int, c_void_p, c_int64]),
    "edgeqat_unpack": (c_int, [c_void_p, c_int, c_int64, c_int64, c_void_p]),
    "edgeqat_quantize": (
        c_int,
        [c_char_p, c_void_p, *[c_int64] * 2, c_int, c_float, *[c_void_p] * 2],
    ),
    "edgeqat_quantize_searched": (
        c_int,
        [c_char_p, c_void_p, *[c_int64] * 2, c_int, *[c_void_p] * 2],
    ),
    "edgeqat_lsq": (
        c_int,
        [Team, *[c_void_p] * 2, c_float, *[c_int64] * 4, c_int, c_void_p],
    ),
    "edgeqat_mse_scale": (
        c_int,
        [Team, *[c_void_p] * 2, *[c_int64] * 3, *[c_int] * 2, c_void_p],
    ),
    "edgeqat_lsq_backward": (
        c_int,
        [Team, *[c_void_p] * 2, c_float, c_void_p, *[c_int64] * 4, c_int, *[c_void_p] * 2],
    ),
    "edgeqat_fake_quantize": (
        c_int,
        [Team, c_void_p, c_int64, c_int64, c_int, c_int, c_float, c_int, *[c_void_p] * 2],
    ),
    "edgeqat_product": (
        c_int,
        [c_char_p, *[c_void_p] * 2, c_int, *[c_int64] * 3, *[c_void_p] * 2, c_int64, c_void_p],
    ),
    "edgeqat_batch_norm": (
        c_int,
        [Team, c_void_p, *[c_int64] * 2, *[c_void_p] * 2, *[c_float] * 3, *[c_void_p] * 3],
    ),
    "edgeqat_batch_norm_backward": (
        c_int,
        [Team, *[c_void_p] * 2, *[c_int64] * 2, *[c_void_p] * 2, *[c_float] * 3, *[c_void_p] * 5],
    ),
}


@lru_cache(maxsize=1)
def library() -> Any:
    """The loaded library, or None (said once) where there is none for this machine."""
    named = os.environ.get("EDGEQAT_LIBRARY")
    path = Path(named) if named else Path(__file__).with_name("libedgeqat.so")
    try:
        loaded = ctypes.CDLL(str(path))
        for name, (result, arguments) in _SIGNATURES.items():
            function = getattr(loaded, name)
            function.restype, function.argtypes = result, arguments
    except (OSError, AttributeError) as error:
        if named:
            raise UsageError(f"EDGEQAT_LIBRARY: '{named}' cannot be loaded ({error})") from None
        reason = (
            "no native library (installed without a C++ compiler)"
            if isinstance(error, OSError)
            else "the native library is older than this package; install it again"
        )
        _logger.warning("engine: %s; using torch, slower", reason)
        return None
    return loaded


def require() -> Any:
    """The loaded library; a UsageError where there is none."""
    loaded = library()
    if loaded is None:
        raise UsageError(
            "engine: the native library is not built; install a C++ compiler and reinstall edgeqat"
        )
    return loaded


def isas() -> dict[str, bool]:
    """Instruction sets of the build, best first, and whether this machine has them."""
    loaded, available = require(), c_int()
    sets: dict[str, bool] = {}
    while (name := loaded.edgeqat_isa(len(sets), ctypes.byref(available))) is not None:
        sets[name.decode()] = bool(available.value)
    return sets


def active_isa() -> str:
    """The instruction set in use; EDGEQAT_ISA, read at the first use, chooses another."""
    name = require().edgeqat_active_isa()
    check(require().edgeqat_last_status())
    return name.decode()


def choose_isa(name: str | None) -> None:
    """Use an instruction set from now on; None: what EDGEQAT_ISA or the machine says."""
    check(require().edgeqat_choose_isa(name.encode() if name else None))


def check(status: int) -> None:
    """Raise what a status other than 0 stands for."""
    if status:
        message = require().edgeqat_error().decode(errors="replace")
        raise UnsupportedModel(message) if status == UNSUPPORTED else FormatError(message)


def text_at(address: int | None, size: int) -> str:
    """The text of so many bytes that a call gave; no address: the call failed."""
    if address is None:
        check(require().edgeqat_last_status())
        return ""
    return ctypes.string_at(address, size).decode()


def open_engine(folder: str, threads: int, context: int, half: bool) -> int:
    """Handle of an engine on a packed folder."""
    handle = require().edgeqat_open(os.fsencode(folder), threads, context, half)
    if not handle:
        check(require().edgeqat_last_status())
    return handle


def open_random(shape: str, scheme: str, threads: int, context: int, half: bool) -> int:
    """Handle of an engine on random weights of a named shape."""
    names = shape.encode(), scheme.encode()
    handle = require().edgeqat_open_random(*names, threads, context, half)
    if not handle:
        check(require().edgeqat_last_status())
    return handle


def info(handle: int) -> Info:
    """Facts of an engine."""
    facts = Info()
    check(require().edgeqat_get_info(handle, ctypes.byref(facts)))
    return facts


def forward(handle: int, ids: np.ndarray, logits: np.ndarray, every: bool) -> None:
    """Append ids (N,) int32; logits (V,) float32 of the last one, or (N, V) with `every`."""
    assert ids.dtype == np.int32 and logits.dtype == np.float32 and logits.flags.c_contiguous
    ids = np.ascontiguousarray(ids)
    check(require().edgeqat_forward(handle, _at(ids), len(ids), _at(logits), every))


def trace(handle: int, ids: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Append ids (N,) int32; logits (N, V) and outputs of the decoder layers (L, N, H), float32."""
    assert ids.dtype == np.int32 and ids.flags.c_contiguous
    facts = info(handle)
    logits = np.empty((len(ids), facts.vocabulary), np.float32)
    outputs = np.empty((facts.layers, len(ids), facts.hidden), np.float32)
    check(require().edgeqat_trace(handle, _at(ids), len(ids), _at(logits), _at(outputs)))
    return logits, outputs


def rewind(handle: int, position: int) -> None:
    """Forget the tokens from `position` on."""
    check(require().edgeqat_rewind(handle, position))


def is_stop(handle: int, token: int) -> bool:
    """Whether a token ends a text."""
    return bool(require().edgeqat_is_stop(handle, token))


def physical_cores() -> int:
    """Physical cores this process may use; without the library, the logical ones."""
    loaded = library()
    return loaded.edgeqat_cores() if loaded is not None else os.cpu_count() or 1


def read_speed(size: int, threads: int) -> float:
    """Bytes a second at which threads (0: physical cores) read `size` bytes in a plain loop."""
    speed = c_double()
    check(require().edgeqat_read_speed(size, threads, ctypes.byref(speed)))
    return speed.value


def close(handle: int) -> None:
    """Free an engine; the handle is dead afterwards."""
    require().edgeqat_close(handle)


class Sampler:
    """The next token from logits: temperature (0: greedy), then top-k, then top-p."""

    def __init__(self, temperature: float, top_k: int, top_p: float, seed: int) -> None:
        self._library = require()
        self.handle = self._library.edgeqat_sampler_new(temperature, top_k, top_p, seed)
        if not self.handle:
            raise UsageError(self._library.edgeqat_error().decode())

    def __call__(self, logits: np.ndarray) -> int:
        """A token id from logits (V,) float32."""
        token = self._library.edgeqat_sample(self.handle, _at(logits), len(logits))
        if token < 0:
            check(self._library.edgeqat_last_status())
        return int(token)

    def __reduce__(self) -> NoReturn:
        raise UsageError("sampler: it cannot be copied or pickled; make one with the same seed")

    def __del__(self) -> None:
        if getattr(self, "handle", None):
            self._library.edgeqat_sampler_free(self.handle)


def unpack(tiles: np.ndarray, bits: int, shape: tuple[int, int]) -> np.ndarray:
    """Codes (O, I) int8 of packed tiles, as the C++ side reads them."""
    codes = np.empty(shape, np.int8)
    check(require().edgeqat_unpack(_at(tiles), bits, *shape, _at(codes)))
    return codes


def quantize(isa: str, values: np.ndarray, bits: int, clip: float) -> tuple[np.ndarray, np.ndarray]:
    """Codes (N, I) int8 and scale (N,) of values (N, I) float32 on an instruction set."""
    codes, scale = np.empty(values.shape, np.int8), np.empty(len(values), np.float32)
    status = require().edgeqat_quantize(
        isa.encode(), _at(values), *values.shape, bits, clip, _at(codes), _at(scale)
    )
    check(status)
    return codes, scale


def quantize_searched(isa: str, values: np.ndarray, bits: int) -> tuple[np.ndarray, np.ndarray]:
    """Codes (N, I) int8 and fp16 scale (N,) of keys or values (N, I) float32, I at most 128."""
    codes, scale = np.empty(values.shape, np.int8), np.empty(len(values), np.float16)
    status = require().edgeqat_quantize_searched(
        isa.encode(), _at(values), *values.shape, bits, _at(codes), _at(scale)
    )
    check(status)
    return codes, scale


def product(
    isa: str,
    tiles: np.ndarray,
    scales: np.ndarray | None,
    bits: int,
    shape: tuple[int, int],
    group_size: int | None,
    codes: np.ndarray,
    code_scale: np.ndarray,
) -> np.ndarray:
    """(N, O) float32: packed weights (O, I) times activation codes (N, I) int8; scales None: 1."""
    out = np.empty((len(codes), shape[0]), np.float32)
    status = require().edgeqat_product(
        isa.encode(),
        _at(tiles),
        None if scales is None else _at(scales),
        bits,
        *shape,
        group_size or 0,
        _at(codes),
        _at(code_scale),
        len(codes),
        _at(out),
    )
    check(status)
    return out


@lru_cache(maxsize=64)
def team(threads: int) -> Team:
    """So many threads of torch's OpenMP library: they are awake already, and those of another pool
    would wait for them. Without it the calling thread alone.
    """
    from torch import _C

    with suppress(OSError, AttributeError):  # looked up in what torch is linked with
        run = ctypes.CDLL(_C.__file__).GOMP_parallel
        return Team(ctypes.cast(run, c_void_p), threads)
    return Team(None, 1)


def _at(array: np.ndarray) -> int:
    assert array.flags.c_contiguous
    return array.ctypes.data
