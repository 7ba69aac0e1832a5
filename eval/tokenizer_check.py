"""Token ids and text of the C++ tokenizer beside those of the `tokenizers` library, on lines of
prose, code, many scripts, emoji, control characters and random bytes.

    python eval/tokenizer_check.py --data novels.txt.gz [--model FOLDER ...] [--lines 100000]

Every pipeline of KINDS is trained on a part of the lines; --model adds the tokenizer of a folder.
"""

from __future__ import annotations

import argparse
import gzip
import json
import random
import sysconfig
import time
from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, trainers
from tokenizers import pre_tokenizers as pre
from tokenizers.processors import Sequence, TemplateProcessing

from edgeqat.native_tokenizer import NativeTokenizer

CONTRACTIONS = "(?i:'s|'t|'re|'ve|'m|'ll|'d)"
REST = r" ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
LLAMA3 = rf"{CONTRACTIONS}|[^\r\n\p{{L}}\p{{N}}]?\p{{L}}+|\p{{N}}{{1,3}}|{REST}"
QWEN2 = rf"{CONTRACTIONS}|[^\r\n\p{{L}}\p{{N}}]?\p{{L}}+|\p{{N}}|{REST}"
CAPITALS, SMALLS = r"\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}", r"\p{Ll}\p{Lm}\p{Lo}\p{M}"
O200K = (
    rf"[^\r\n\p{{L}}\p{{N}}]?[{CAPITALS}]*[{SMALLS}]+{CONTRACTIONS}?"
    rf"|[^\r\n\p{{L}}\p{{N}}]?[{CAPITALS}]+[{SMALLS}]*{CONTRACTIONS}?|\p{{N}}{{1,3}}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
SPECIAL = ["<unk>", "<s>", "</s>", "<|im_start|>", "<|im_end|>"]
MARK = "\u2581"
BYTES = [f"<0x{n:02X}>" for n in range(256)]

# (normalizer, pre-tokenizer) of each pipeline of byte-level BPE
BYTE_LEVEL = {
    "gpt2": (None, pre.ByteLevel(add_prefix_space=False)),
    "gpt2-prefix": (None, pre.ByteLevel(add_prefix_space=True)),
    "llama3": (None, [pre.Split(Regex(LLAMA3), "isolated")]),
    "qwen2": (normalizers.NFC(), [pre.Split(Regex(QWEN2), "isolated")]),
    "smollm2": (None, pre.Sequence([pre.Digits(True), pre.ByteLevel(add_prefix_space=False)])),
    "o200k": (None, [pre.Split(Regex(O200K), "isolated")]),
    "deepseek": (
        None,
        [
            pre.Split(Regex("[\r\n]"), "isolated"),
            pre.Split(Regex(r"\s?\p{L}+"), "isolated"),
            pre.Split(Regex(r"\s?\p{P}+"), "isolated"),
            pre.Split(Regex("[\u4e00-\u9fa5\u0800-\u4e00\uac00-\ud7ff]+"), "isolated"),
            pre.Digits(True),
        ],
    ),
    "falcon": (
        None,
        pre.Sequence(
            [
                pre.Punctuation("contiguous"),
                pre.ByteLevel(add_prefix_space=False),
                pre.Digits(False),
                pre.Split(Regex("[0-9][0-9][0-9]"), "isolated"),
            ]
        ),
    ),
    "lowercase": (
        normalizers.Sequence([normalizers.NFKC(), normalizers.Strip(), normalizers.Lowercase()]),
        pre.Sequence([pre.Whitespace(), pre.ByteLevel(add_prefix_space=False, use_regex=False)]),
    ),
}
PIECES = ("llama2", "mistral", "phi3", "gemma", "unigram", "unigram-nfkc")
KINDS = (*BYTE_LEVEL, *PIECES)


def trained(kind: str, lines: list[str], size: int) -> Tokenizer:
    """A small tokenizer with the pipeline of a known one."""
    made = byte_level(kind, lines, size) if kind in BYTE_LEVEL else pieces(kind, lines, size)
    words = [
        AddedToken("<|tool|>", lstrip=True, rstrip=True),
        AddedToken("Zweig", single_word=True),
    ]
    made.add_special_tokens([AddedToken(text, rstrip=kind == "phi3") for text in SPECIAL[3:]])
    made.add_tokens([*words, AddedToken("  two", normalized=True)])
    first = TemplateProcessing(single="<s> $A", special_tokens=[("<s>", made.token_to_id("<s>"))])
    if kind not in ("qwen2", "smollm2", "gpt2"):
        made.post_processor = Sequence([first])
    return made


def byte_level(kind: str, lines: list[str], size: int) -> Tokenizer:
    made = Tokenizer(models.BPE(ignore_merges=kind in ("llama3", "o200k")))
    normalizer, splitter = BYTE_LEVEL[kind]
    if normalizer is not None:
        made.normalizer = normalizer
    if isinstance(splitter, list):
        splitter = pre.Sequence([*splitter, pre.ByteLevel(False, use_regex=False)])
    made.pre_tokenizer = splitter
    made.decoder = decoders.ByteLevel()
    alphabet = pre.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=size, special_tokens=SPECIAL[:3], initial_alphabet=alphabet, show_progress=False
    )
    made.train_from_iterator(lines, trainer)
    return made


def pieces(kind: str, lines: list[str], size: int) -> Tokenizer:
    """Of the SentencePiece sort: words with a mark for the space, bytes for unknown characters."""
    unigram = kind.startswith("unigram")
    made = Tokenizer(models.Unigram() if unigram else models.BPE())
    made.pre_tokenizer = pre.Metaspace()
    options = {"vocab_size": size, "special_tokens": SPECIAL[:3], "show_progress": False}
    if unigram:
        trainer = trainers.UnigramTrainer(unk_token="<unk>", **options)
    else:
        trainer = trainers.BpeTrainer(limit_alphabet=200, **options)
    known = [line.strip()[:400] for line in lines if max(line) < "\u0250"]  # a small alphabet
    made.train_from_iterator(known if unigram else lines, trainer)
    model = json.loads(made.to_str())["model"]
    if unigram:
        own = [(text, 0.0) for text in BYTES] if kind == "unigram" else []
        vocabulary = [(token, score) for token, score in model["vocab"]]
        made.model = models.Unigram(vocabulary + own, 0, byte_fallback=bool(own))
    else:
        trained_words = sorted(model["vocab"], key=model["vocab"].__getitem__)[3:]
        words = [*SPECIAL[:3], *BYTES, *(w for w in trained_words if w not in BYTES)]
        vocab = {word: number for number, word in enumerate(words)}
        merges = [tuple(pair) for pair in model["merges"]]
        made.model = models.BPE(
            vocab, merges, unk_token="<unk>", fuse_unk=kind != "gemma", byte_fallback=True
        )
    replace, prepend = normalizers.Replace(" ", MARK), normalizers.Prepend(MARK)
    spaces, extra = normalizers.Replace(Regex(" {2,}"), " "), normalizers.NFKC()
    made.normalizer = {
        "llama2": normalizers.Sequence([prepend, replace]),
        "phi3": normalizers.Sequence([prepend, replace]),
        "gemma": replace,
        "unigram": normalizers.Sequence([normalizers.Strip(), spaces]),
        "unigram-nfkc": normalizers.Sequence([extra, spaces]),
    }.get(kind)
    made.pre_tokenizer = {
        "mistral": pre.Metaspace(prepend_scheme="first", split=False),
        "gemma": pre.Split(" ", "merged_with_previous"),
        "unigram": pre.Metaspace(prepend_scheme="first"),
        "unigram-nfkc": pre.Sequence([pre.WhitespaceSplit(), pre.Metaspace()]),
    }.get(kind)
    parts = [decoders.Replace(MARK, " "), decoders.ByteFallback(), decoders.Fuse()]
    if kind != "gemma":
        parts.append(decoders.Strip(" ", 1, 0))
    made.decoder = decoders.Metaspace() if unigram else decoders.Sequence(parts)
    return made


BLOCKS = {
    "cjk": (0x4E00, 0x9FFF), "kana": (0x3040, 0x30FF), "hangul": (0xAC00, 0xD7A3),
    "arabic": (0x600, 0x6FF), "devanagari": (0x900, 0x97F), "cyrillic": (0x400, 0x4FF),
    "emoji": (0x1F300, 0x1FAFF), "latin": (0xA0, 0x24F), "marks": (0x300, 0x36F),
    "any": (0x20, 0x10FFFF), "controls": (0, 0x9F), "spaces": (0x2000, 0x206F),
}  # fmt: skip


def scripts(source: random.Random) -> str:
    """A few runs of characters of random blocks, with spaces, words and marks between them."""
    parts = []
    for _ in range(source.randint(1, 8)):
        first, last = BLOCKS[source.choice(list(BLOCKS))]
        run = (source.randint(first, last) for _ in range(source.randint(1, 9)))
        parts.append("".join(chr(c) for c in run if not 0xD800 <= c < 0xE000))
        parts.append(source.choice(GLUE))
    return "".join(parts)


GLUE = (
    " ", "  ", "\n", "\r\n", "\t", "\u3000", "\u00a0", "e\u0301", "'s", "'LL", "'\u017f", "I'd've",
    "0", "12345", "3.14", "\u0664", "\u00bd", "<s>", "</s>", "<|im_start|>", " <|tool|> ", "Zweig",
    " Zweig ", "Zweige", "  two", "\u2581", "\u2581\u2581", "<0x0A>", "...", "!?", "://", "\u0130",
    "\ufb01", "\u1e9e", "\u200d", "\U0001f468\u200d\U0001f469", "    ", "\n\n\n ", "", "", "",
)  # fmt: skip


def mixed(source: random.Random, text: list[str]) -> str:
    """Words of a line among other scripts."""
    words = source.choice(text).split(" ")
    for _ in range(source.randint(1, 4)):
        words.insert(source.randrange(len(words) + 1), source.choice(GLUE) + scripts(source))
    return " ".join(words)


def lines_of(text: list[str], code: list[str], count: int, seed: int = 1) -> list[str]:
    """Lines of all sorts: half prose and code, half made ones."""
    source = random.Random(seed)

    def noise() -> str:
        return source.randbytes(source.randint(1, 80)).decode("utf-8", "replace")

    made = []
    for number in range(count):
        kind = number % 10
        if kind < 3:
            made.append(source.choice(text))
        elif kind < 5:
            made.append(source.choice(code))
        elif kind == 5:
            made.append(noise())
        elif kind == 6:
            start = source.randrange(len(text))
            made.append("\n".join(text[start : start + source.randint(2, 6)]))
        elif kind == 7:
            made.append(mixed(source, text))
        else:
            made.append(scripts(source))
    return made


def differences(ours: NativeTokenizer, theirs: Tokenizer, lines: list[str]) -> list[str]:
    """Lines whose ids or text differ, with what differs."""
    wrong = []
    for number, line in enumerate(lines):
        ids = theirs.encode(line).ids
        if ours.encode(line) != ids:
            wrong.append(f"ids of {line!r}: {ours.encode(line)} for {ids}")
        text = theirs.decode(ids)
        if ours.decode(ids) != text:
            wrong.append(f"text of {line!r}: {ours.decode(ids)!r} for {text!r}")
        if number % 8 == 0:
            wrong += rarer(ours, theirs, line, ids)
    return wrong


def rarer(ours: NativeTokenizer, theirs: Tokenizer, line: str, ids: list[int]) -> list[str]:
    """What differs without special tokens, and in streams."""
    wrong = []
    if ours.encode(line, special=False) != theirs.encode(line, add_special_tokens=False).ids:
        wrong.append(f"ids of {line!r} without special ones")
    for special in (False, True):
        text = theirs.decode(ids, skip_special_tokens=not special)
        if ours.decode(ids, special) != text:
            wrong.append(f"text of {line!r}: {ours.decode(ids, special)!r} for {text!r}")
        if "".join(ours.stream(ids, special)) != text:
            wrong.append(f"stream of {line!r}: {''.join(ours.stream(ids, special))!r}")
    return wrong


def speeds(ours: NativeTokenizer, theirs: Tokenizer, lines: list[str]) -> tuple[float, float]:
    """Lines a second of both, one thread, one call a line."""
    found = []
    for encode in (ours.encode, theirs.encode):
        start = time.perf_counter()
        for line in lines:
            encode(line)
        found.append(len(lines) / (time.perf_counter() - start))
    return found[0], found[1]


def read(path: Path) -> list[str]:
    whole = path.read_bytes()
    if path.suffix == ".gz":
        whole = gzip.decompress(whole)
    return [line for line in whole.decode().split("\n") if line.strip()]


def code_lines() -> list[str]:
    """The library of Python itself."""
    files = sorted(Path(sysconfig.get_path("stdlib")).glob("*.py"))[:80]
    return [x for f in files for x in f.read_text("utf-8").splitlines() if x.strip()]


def tokenizers(options: argparse.Namespace, lines: list[str]) -> Iterator[tuple[str, Tokenizer]]:
    for folder in options.model:
        yield folder.resolve().name, Tokenizer.from_file(str(folder / "tokenizer.json"))
    part = random.Random(0).sample(lines, min(len(lines), 12000))
    for kind in KINDS:
        yield kind, trained(kind, part, options.vocabulary)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, required=True, help="text, also .gz")
    parser.add_argument(
        "--model", type=Path, nargs="*", default=[], help="folders with a tokenizer"
    )
    parser.add_argument("--lines", type=int, default=100000)
    parser.add_argument("--vocabulary", type=int, default=4000, help="of the trained ones")
    options = parser.parse_args()
    lines = lines_of(read(options.data), code_lines(), options.lines)
    print("| tokenizer | tokens | differences | lines/s | lines/s of `tokenizers` |")
    print("|---|---|---|---|---|")
    failed = 0
    for name, theirs in tokenizers(options, lines):
        with TemporaryDirectory() as folder:
            theirs.save(str(Path(folder) / "tokenizer.json"))
            ours = NativeTokenizer(Path(folder))
        fast = speeds(ours, theirs, lines[:20000])
        wrong = differences(ours, theirs, lines)
        failed += len(wrong)
        cells = theirs.get_vocab_size(), len(wrong), *(f"{speed:,.0f}" for speed in fast)
        print("|", " | ".join(map(str, (name, *cells))), "|", flush=True)
        for text in wrong[:3]:
            print(text[:500])
    raise SystemExit(1 if failed else 0)


if __name__ == "__main__":
    main()
