"""The tokenizer of a packed folder without transformers, whose import takes longer than a first
token.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from edgeqat.errors import FormatError

FILE = "tokenizer.json"
_VOCABULARIES = (
    FILE, "tokenizer.model", "vocab.json", "vocab.txt", "spiece.model", "sentencepiece.bpe.model",
    "tekken.json",
)  # fmt: skip
FILES = (
    *_VOCABULARIES, "merges.txt", "tokenizer_config.json", "special_tokens_map.json",
    "added_tokens.json",
)  # fmt: skip


def check(folder: Path) -> None:
    """Refuse a folder without any file that holds a vocabulary: a FormatError in one line."""
    if not any((folder / name).is_file() for name in _VOCABULARIES):
        raise FormatError(
            f"tokenizer: '{folder}' has none; put the model's own there with "
            f"tokenizer.save_pretrained('{folder}')"
        )


class Tokenizer:
    """Text to token ids and back, as transformers does it with the same file."""

    def __init__(self, folder: Path) -> None:
        from tokenizers import Tokenizer as Reader

        try:
            self._reader = Reader.from_file(str(folder / FILE))
        except Exception as error:  # tokenizers raises plain ones
            reason = " ".join(str(error).split())[:120]
            raise FormatError(
                f"{FILE}: '{folder}' has no readable one ({reason}); copy the folder again"
            ) from None
        self._reader.no_truncation()  # a file may hold what its last use asked for
        self._reader.no_padding()

    def encode(self, text: str) -> list[int]:
        """Token ids of a text, with what the tokenizer puts around it."""
        ids: list[int] = self._reader.encode(text).ids
        return ids

    def decode(self, ids: Sequence[int]) -> str:
        """Text of token ids, special ones left out."""
        text: str = self._reader.decode(list(ids), skip_special_tokens=True)
        return text
