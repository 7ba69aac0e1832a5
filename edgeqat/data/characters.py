"""Text of whole characters: JSON may escape halves of them, which no tokenizer takes."""

from __future__ import annotations

import re

_SURROGATES = re.compile("[\ud800-\udfff]")


def whole(text: str) -> str:
    """The text with a replacement character for each half."""
    return _SURROGATES.sub("\ufffd", text)
