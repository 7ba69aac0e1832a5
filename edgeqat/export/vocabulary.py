"""The tokenizer of a folder as the fields of a GGUF file: byte-level BPE, and SentencePiece-style
BPE with byte fallback.

llama.cpp knows how a text is split before BPE by name only; a tokenizer whose split it would not
repeat is refused.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from edgeqat.errors import FormatError, UsageError

NORMAL, UNKNOWN, CONTROL, USER_DEFINED, BYTE = 1, 2, 3, 4, 6  # llama.cpp's token types
_SPECIAL = ("bos", "eos", "unk", "pad")
_DIGITS = {"type": "Digits", "individual_digits": True}
_SPLITS = {"{1,3}": "llama-bpe", "\\p{N}|": "qwen2"}  # of the pattern of a Split


@dataclass
class Vocabulary:
    """model: gpt2 (byte-level) or llama; `split` names the pre-tokenizer; special: ids by name."""

    model: str
    split: str
    tokens: list[str]
    types: list[int]
    scores: list[float] | None
    merges: list[str]
    special: dict[str, int] = field(default_factory=dict)
    adds_bos: bool = False
    chat_template: str | None = None


def read(folder: Path, size: int) -> Vocabulary:
    """The vocabulary of tokenizer.json, padded to `size` tokens. Raises an EdgeQATError in one
    line.
    """
    whole = _json(folder / "tokenizer.json")
    settings = _json(folder / "tokenizer_config.json")
    model = whole["model"]
    if model.get("type") != "BPE":
        raise UsageError(
            f"gguf: the tokenizer is {model.get('type')}; only BPE tokenizers are exported"
        )
    ids = dict(model["vocab"])
    added = {entry["content"]: entry for entry in whole.get("added_tokens") or []}
    ids |= {name: entry["id"] for name, entry in added.items()}
    tokens = [f"[PAD{number}]" for number in range(size)]
    types = [CONTROL] * size
    pieces = bool(model.get("byte_fallback"))
    for name, number in ids.items():
        tokens[number], types[number] = name, _type(name, added.get(name), pieces)
    merges = [own if isinstance(own, str) else " ".join(own) for own in model["merges"]]
    found = Vocabulary(
        model="llama" if pieces else "gpt2",
        split="default" if pieces else _split(whole.get("pre_tokenizer") or {}),
        tokens=tokens,
        types=types,
        scores=[-float(number) for number in range(size)] if pieces else None,
        merges=[] if pieces else merges,
        chat_template=settings.get("chat_template"),
    )
    for name in _SPECIAL:
        text = settings.get(f"{name}_token")
        text = text.get("content") if isinstance(text, dict) else text
        if text in ids:
            found.special[name] = ids[text]
    first = (whole.get("post_processor") or {}).get("single") or [{}]
    starts = first[0].get("SpecialToken", {}).get("id")
    found.adds_bos = starts is not None and ids.get(starts) == found.special.get("bos")
    return found


def _type(name: str, entry: dict[str, Any] | None, pieces: bool) -> int:
    if entry is not None:
        return CONTROL if entry.get("special") else USER_DEFINED
    if pieces and name.startswith("<0x") and len(name) == 6:
        return BYTE
    return NORMAL


def _split(splitter: dict[str, Any]) -> str:
    """llama.cpp's name of a pre-tokenizer."""
    parts = splitter.get("pretokenizers") or [splitter]
    kinds = [part.get("type") for part in parts]
    if kinds == ["ByteLevel"] and parts[0].get("use_regex", True):
        if not parts[0].get("add_prefix_space"):
            return "gpt-2"
    elif kinds == ["Digits", "ByteLevel"] and parts[0] == _DIGITS:
        return "smollm"
    elif kinds == ["Split", "ByteLevel"]:
        pattern = parts[0]["pattern"].get("Regex", "")
        for mark, name in _SPLITS.items():
            if mark in pattern:
                return name
    raise UsageError(
        f"gguf: llama.cpp has no name for the tokenizer's split {'+'.join(map(str, kinds))}; "
        "export it with llama.cpp's own converter"
    )


def _json(path: Path) -> dict[str, Any]:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        raise FormatError(f"{path.name}: '{path}' cannot be read; copy the folder again") from None
