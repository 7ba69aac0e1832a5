"""The C++ library's tokenizer: what `edgeqat-run` and C programs use instead of `tokenizers`.

Legend: N tokens.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from edgeqat import native

_AROUND = 64  # tokens that a first buffer holds beside one a byte


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
        size = len(data) + _AROUND
        while True:
            ids = np.empty(size, np.int32)
            at = ids.ctypes.data
            count = self._library.edgeqat_encode(self._handle, data, len(data), special, at, size)
            if count < 0:
                native.check(self._library.edgeqat_last_status())
            if count <= size:
                return ids[:count].tolist()
            size = count

    def decode(self, ids: Sequence[int], special: bool = False) -> str:
        """Text of token ids (N,), special ones left out."""
        given = np.asarray(ids, np.int32)
        size = 16 * len(given) + _AROUND
        while True:
            text = np.empty(size, np.uint8)
            where = given.ctypes.data, len(given), special, text.ctypes.data, size
            count = self._library.edgeqat_decode(self._handle, *where)
            if count < 0:
                native.check(self._library.edgeqat_last_status())
            if count <= size:
                return text[:count].tobytes().decode()
            size = count

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
        given, size = json.dumps(messages).encode(), 1 << 14
        while True:
            text = np.empty(size, np.uint8)
            where = text.ctypes.data, size
            count = self._library.edgeqat_chat_apply(
                self._handle, given, add_generation_prompt, *where
            )
            if count < 0:
                native.check(self._library.edgeqat_last_status())
            if count < size:
                return text[:count].tobytes().decode()
            size = count + 1

    def __del__(self) -> None:
        if getattr(self, "_handle", None):
            self._library.edgeqat_chat_close(self._handle)
