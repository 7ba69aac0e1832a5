"""The C++ library's tokenizer: what `edgeqat-run` and C programs use instead of `tokenizers`.

Legend: N tokens.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from edgeqat import native

_AROUND = 64  # tokens that a first buffer holds beside one a byte
_MESSAGES = 1 << 14  # bytes of the first buffer of a conversation


class NativeTokenizer:
    """Text to token ids and back, by the tokenizer.json of a folder."""

    def __init__(self, folder: Path) -> None:
        self._library = native.require()
        self._handle = self._library.edgeqat_tokenizer_open(os.fsencode(folder))
        if not self._handle:
            native.check(self._library.edgeqat_last_status())

    def encode(self, text: str | bytes, special: bool = True) -> list[int]:
        """Token ids, with those that the tokenizer puts around a text; broken UTF-8 is U+FFFD."""
        data = text.encode() if isinstance(text, str) else text
        call = partial(self._library.edgeqat_encode, self._handle, data, len(data), special)
        return _filled(call, np.int32, len(data) + _AROUND).tolist()

    def decode(self, ids: Sequence[int], special: bool = False) -> str:
        """Text of token ids (N,), special ones left out."""
        given = np.asarray(ids, np.int32)
        where = given.ctypes.data, len(given), special
        call = partial(self._library.edgeqat_decode, self._handle, *where)
        return _filled(call, np.uint8, 16 * len(given) + _AROUND).tobytes().decode()

    def stream(self, ids: Iterable[int], special: bool = False) -> Iterator[str]:
        """What each of the ids adds to the text; at last what was held back."""
        library, size = self._library, np.zeros(1, np.int64)
        handle = library.edgeqat_stream_new(self._handle, special)
        if not handle:
            native.check(library.edgeqat_last_status())
        try:
            for token in ids:
                text = library.edgeqat_stream_next(handle, token, size.ctypes.data)
                yield native.text_at(text, int(size[0]))
            text = library.edgeqat_stream_end(handle, size.ctypes.data)
            yield native.text_at(text, int(size[0]))
        finally:
            library.edgeqat_stream_free(handle)

    def __del__(self) -> None:
        if getattr(self, "_handle", None):
            self._library.edgeqat_tokenizer_close(self._handle)


class NativeChat:
    """Messages to text, by the chat template of a folder."""

    def __init__(self, folder: Path) -> None:
        self._library = native.require()
        self._handle = self._library.edgeqat_chat_open(os.fsencode(folder))
        if not self._handle:
            native.check(self._library.edgeqat_last_status())

    def apply(self, messages: list[dict[str, Any]], add_generation_prompt: bool = False) -> str:
        """Text of messages, with the beginning of an answer or without."""
        given = json.dumps(messages).encode()
        call = partial(self._library.edgeqat_chat_apply, self._handle, given, add_generation_prompt)
        return _filled(call, np.uint8, _MESSAGES).tobytes().decode()

    def __del__(self) -> None:
        if getattr(self, "_handle", None):
            self._library.edgeqat_chat_close(self._handle)


def _filled(call: Callable[[int, int], int], dtype: type, size: int) -> np.ndarray:
    """What a call writes into a buffer of `size` values; once more where they are too few."""
    while True:
        values: np.ndarray = np.empty(size, dtype)
        count = call(values.ctypes.data, size)
        if count < 0:
            native.check(native.require().edgeqat_last_status())
        if count <= size:
            return values[:count]
        size = count
