"""The tokenizer of a packed folder as transformers reads it, with its chat template: for folders
without tokenizer.json, and for conversations.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from edgeqat.errors import UsageError


class FolderTokenizer:
    """Text and conversations to token ids and back."""

    def __init__(self, folder: Path) -> None:
        from edgeqat.hf import packed_folder

        self._folder = folder
        self._reader: Any = packed_folder.load_tokenizer(folder)

    def encode(self, text: str) -> list[int]:
        """Token ids of a text, with what the tokenizer puts around it."""
        ids: list[int] = self._reader.encode(text)
        return ids

    def encode_plain(self, text: str) -> list[int]:
        """Token ids of a text that says all of it itself, as templates do."""
        ids: list[int] = self._reader.encode(text, add_special_tokens=False)
        return ids

    def decode(self, ids: Sequence[int], special: bool = False) -> str:
        """Text of token ids, special ones left out."""
        text: str = self._reader.decode(list(ids), skip_special_tokens=not special)
        return text

    def check_template(self, way: str) -> None:
        """Refuse a folder without a chat template; `way` says what to do then."""
        if not self._reader.chat_template:
            raise UsageError(f"chat: '{self._folder}' has no chat template; {way}")

    def template(self, messages: list[dict[str, str]]) -> list[int]:
        """Token ids of a conversation, up to where the next answer begins."""
        from jinja2 import TemplateError

        try:
            text = self._reader.apply_chat_template(
                messages, tokenize=False, add_generation_prompt=True
            )
        except TemplateError as error:
            reason = " ".join(str(error).split())[:120]
            raise UsageError(
                f"chat: the model's template refuses the conversation ({reason}); leave out the "
                "system's words, or begin anew"
            ) from None
        return self.encode_plain(text)
