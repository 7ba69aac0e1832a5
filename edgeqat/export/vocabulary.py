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
from edgeqat.runtime.tokenizer import FILE

NORMAL, UNKNOWN, CONTROL, USER_DEFINED, BYTE = 1, 2, 3, 4, 6  # llama.cpp's token types
_SPECIAL = ("bos", "eos", "unk", "pad")
_DIGITS = {"type": "Digits", "individual_digits": True}
_BLANK = "\u2581"
TEMPLATE = "chat_template.jinja"
_PATTERN = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}%s| ?[^\s\p{L}\p{N}]+[\r\n]*|"
    r"\s*[\r\n]+|\s+(?!\S)|\s+"
)  # of a Split: what a word is, and how many digits stay together
_SPLITS = {_PATTERN % "{1,3}": "llama-bpe", _PATTERN % "": "qwen2"}


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
    prefix: bool = False  # of the SentencePiece kind: a blank before the text
    chat_template: str | None = None

    def write(self, writer: Any) -> None:
        """Add the fields to a gguf.GGUFWriter."""
        writer.add_tokenizer_model(self.model)
        writer.add_tokenizer_pre(self.split)
        writer.add_token_list(self.tokens)
        writer.add_token_types(self.types)
        if self.scores is not None:
            writer.add_token_scores(self.scores)
            writer.add_add_space_prefix(self.prefix)
        if self.merges:
            writer.add_token_merges(self.merges)
        for name, number in self.special.items():
            getattr(writer, f"add_{name}_token_id")(number)
        writer.add_add_bos_token(self.adds_bos)
        if self.chat_template:
            writer.add_chat_template(self.chat_template)


def read(folder: Path, size: int) -> Vocabulary:
    """The vocabulary of tokenizer.json, padded to `size` tokens. Raises an EdgeQATError in one
    line.
    """
    if not (folder / FILE).is_file():
        raise FormatError(
            f"{FILE}: '{folder}' has none, and gguf is made from it; load the model's tokenizer "
            f"with AutoTokenizer and save_pretrained('{folder}')"
        )
    whole = _json(folder / FILE)
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
    _check_normalizer(whole.get("normalizer"), pieces)
    merges = [merge if isinstance(merge, str) else " ".join(merge) for merge in model["merges"]]
    vocabulary = Vocabulary(
        model="llama" if pieces else "gpt2",
        split="default" if pieces else _split(whole.get("pre_tokenizer") or {}),
        tokens=tokens,
        types=types,
        scores=[-float(number) for number in range(size)] if pieces else None,
        merges=[] if pieces else merges,
        prefix=_has_prefix(whole) if pieces else False,
        chat_template=_template(folder, settings),
    )
    for name in _SPECIAL:
        text = settings.get(f"{name}_token")
        text = text.get("content") if isinstance(text, dict) else text
        if text in ids:
            vocabulary.special[name] = ids[text]
    starts = _first_token(whole.get("post_processor") or {})
    vocabulary.adds_bos = starts is not None and ids.get(starts) == vocabulary.special.get("bos")
    return vocabulary


def _first_token(processor: dict[str, Any]) -> str | None:
    """What a post-processor, or one of a sequence of them, puts before a text."""
    for part in processor.get("processors") or [processor]:
        if part.get("single"):
            name: str | None = part["single"][0].get("SpecialToken", {}).get("id")
            return name
    return None


def _template(folder: Path, settings: dict[str, Any]) -> str | None:
    """The chat template: a file of its own, or a field of tokenizer_config.json."""
    file = folder / TEMPLATE
    template = file.read_text(encoding="utf-8") if file.is_file() else settings.get("chat_template")
    return template if isinstance(template, str) else None


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
        if pattern in _SPLITS:
            return _SPLITS[pattern]
    raise UsageError(
        f"gguf: llama.cpp has no name for the tokenizer's split {'+'.join(map(str, kinds))}; "
        "export it with llama.cpp's own converter"
    )


def _check_normalizer(normalizer: dict[str, Any] | None, pieces: bool) -> None:
    """Refuse what changes a text before it is split; llama.cpp leaves NFC to the caller, and puts
    the blank's sign in itself.
    """
    parts = (normalizer or {}).get("normalizers") or ([normalizer] if normalizer else [])
    blank = {"type": "Replace", "pattern": {"String": " "}, "content": _BLANK}
    supported = [blank, {"type": "Prepend", "prepend": _BLANK}] if pieces else [{"type": "NFC"}]
    for part in parts:
        if part not in supported:
            raise UsageError(
                f"gguf: llama.cpp does not repeat the tokenizer's normalizer {part.get('type')}; "
                "export it with llama.cpp's own converter"
            )


def _has_prefix(whole: dict[str, Any]) -> bool:
    """Whether a tokenizer of the SentencePiece kind puts a blank before a text."""
    normalizer, splitter = (whole.get(name) or {} for name in ("normalizer", "pre_tokenizer"))
    if not splitter:
        parts = normalizer.get("normalizers") or [normalizer]
        return any(part.get("type") == "Prepend" for part in parts)
    if splitter.get("type") != "Metaspace" or splitter.get("replacement", _BLANK) != _BLANK:
        raise UsageError(
            f"gguf: llama.cpp does not repeat the tokenizer's split {splitter.get('type')} of the "
            "SentencePiece kind; export it with llama.cpp's own converter"
        )
    return splitter.get("prepend_scheme", "always") != "never"


def _json(path: Path) -> dict[str, Any]:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        raise FormatError(f"{path.name}: '{path}' cannot be read; copy the folder again") from None
