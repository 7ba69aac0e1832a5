"""Text and conversations to token ids, and token ids to text, for a server: reading is done by many
threads one after the other, writing by the engine's thread alone, so each has a tokenizer.
"""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Iterable, Iterator
from functools import lru_cache
from pathlib import Path
from threading import Lock

from edgeqat.errors import EdgeQATError, FormatError
from edgeqat.native import UnsupportedModel
from edgeqat.native_tokenizer import NativeChat, NativeTokenizer
from edgeqat.pipeline.folder_tokenizer import FolderTokenizer
from edgeqat.pipeline.generate import text_added
from edgeqat.runtime import tokenizer as tokenizer_files
from edgeqat.serve.refusal import Refused

_NO_TEMPLATE = "messages: the model has no chat template; use /v1/completions"
_logger = logging.getLogger("edgeqat")


class Reader:
    """Prompts to token ids; threads may share it."""

    def __init__(self, folder: Path) -> None:
        self._folder, self._lock = folder, Lock()
        self._tokenizer = _tokenizer(folder)
        self._chat: NativeChat | FolderTokenizer | None
        try:
            self._chat = NativeChat(folder)
        except UnsupportedModel as error:
            self._chat = self._slow_chat(error)
        except FormatError as error:
            _logger.warning("chats are refused (%s); completions work", error)
            self._chat = None

    def encode(self, text: str) -> list[int]:
        """Token ids of a text, with what the tokenizer puts around it."""
        with self._lock:
            return self._tokenizer.encode(text)

    def template(self, messages: list[dict[str, str]]) -> list[int]:
        """Token ids of a conversation, up to where the next answer begins; Refused where the model
        has no template, or one that does not take it.
        """
        with self._lock:
            if self._chat is None:
                raise Refused(_NO_TEMPLATE, param="messages")
            try:
                return self._applied(messages)
            except EdgeQATError as error:
                reason = " ".join(str(error).split())[:200]
                raise Refused(
                    f"messages: the model's template refuses them ({reason}); change the messages",
                    param="messages",
                ) from None

    def _applied(self, messages: list[dict[str, str]]) -> list[int]:
        if isinstance(self._chat, NativeChat):
            try:
                text = self._chat.apply(messages, add_generation_prompt=True)
            except UnsupportedModel as error:
                self._chat = self._slow_chat(error)
            else:
                if isinstance(self._tokenizer, NativeTokenizer):
                    return self._tokenizer.encode(text, special=False)
                return self._tokenizer.encode_plain(text)
        assert self._chat is not None
        return self._chat.template(messages)

    def _slow_chat(self, error: UnsupportedModel) -> FolderTokenizer:
        _logger.warning("%s; transformers applies the template, slower", error)
        if isinstance(self._tokenizer, FolderTokenizer):
            return self._tokenizer
        return FolderTokenizer(self._folder)


class Writer:
    """Token ids to text; one thread at a time."""

    def __init__(self, folder: Path) -> None:
        self._tokenizer = _tokenizer(folder)
        anchor = self._tokenizer.encode("a")[-1:]
        self._token = lru_cache(maxsize=4096)(lambda id: self._behind(anchor, id))

    def token(self, id: int) -> str:
        """The text of a token alone, special ones too: as it is behind others, with its blank."""
        return self._token(id)

    def pieces(self, behind: Iterable[int] = ()) -> Pieces:
        """The text of tokens that come one by one, as it is behind others: a first blank depends on
        them.
        """
        pieces = Pieces(self._tokenizer)
        for id in behind:
            pieces.push(id)
        return pieces

    def _behind(self, anchor: list[int], id: int) -> str:
        before = self._tokenizer.decode(anchor, special=True)
        whole = self._tokenizer.decode([*anchor, id], special=True)
        return whole.removeprefix(before)


class Pieces:
    """What each token of an answer adds to its text."""

    def __init__(self, tokenizer: NativeTokenizer | FolderTokenizer) -> None:
        self._ids: deque[int] = deque()
        self._texts = _stream(tokenizer, self._given())

    def _given(self) -> Iterator[int]:
        while self._ids:
            yield self._ids.popleft()

    def push(self, id: int) -> str:
        """What one more token adds; nothing while a character is not whole."""
        self._ids.append(id)
        return next(self._texts)

    def end(self) -> str:
        """What was held back, when nothing more comes."""
        return next(self._texts, "")


def _tokenizer(folder: Path) -> NativeTokenizer | FolderTokenizer:
    tokenizer_files.check(folder)
    if (folder / tokenizer_files.FILE).is_file():
        try:
            return NativeTokenizer(folder)
        except UnsupportedModel as error:
            _logger.warning("tokenizer: %s; using transformers, slower", error)
    return FolderTokenizer(folder)


def _stream(tokenizer: NativeTokenizer | FolderTokenizer, ids: Iterable[int]) -> Iterator[str]:
    if isinstance(tokenizer, NativeTokenizer):
        return tokenizer.stream(ids)
    return text_added(tokenizer, ids)
