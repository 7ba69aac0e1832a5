"""Writes the Unicode tables of the C++ tokenizer, kernels/src/unicode_*.cc.

    python kernels/tools/unicode_tables.py

Ids must be those of the `tokenizers` library, so it is asked about every code point: which
characters are letters, numbers and spaces in its split patterns, how they decompose and what their
small letters are. Python's unicodedata, of another Unicode version, only proposes candidates.
"""

from __future__ import annotations

import unicodedata
from itertools import groupby
from pathlib import Path

from tokenizers import Regex, normalizers, pre_tokenizers

PLACE = Path(__file__).parents[1] / "src"
POINTS = [code for code in range(0x110000) if not 0xD800 <= code < 0xE000]
TEXT = "".join(map(chr, POINTS))
# Bits of a class, in the order of unicode.h.
CATEGORIES = ("Lu", "Ll", "Lt", "Lm", "Lo", "M", "Nd", "Nl", "No", "P", "S", "Z", "C")
HEAD = "// Written by kernels/tools/unicode_tables.py.\n"


def main() -> None:
    write("classes", {"kClassMasks": masks(), "kClassRuns": class_runs()})
    write("case", {"kLower": lower()})
    write("canonical", {"kCanonical": canonical(), "kCombining": combining()})
    write("compatible", {"kCompatible": compatible()})


def write(name: str, tables: dict[str, list[int]]) -> None:
    """One source file of arrays; each array's first number is the count of those behind it."""
    text = HEAD + '#include "unicode_tables.h"\n\nnamespace edgeqat {\n'
    for table, numbers in tables.items():
        text += f"\nconst uint32_t {table}[] = {{\n"
        line = "   "
        for number in [len(numbers), *numbers]:
            word = f" {number},"
            if len(line) + len(word) > 100:
                text += line + "\n"
                line = "   "
            line += word
        text += line + "\n};\n"
    (PLACE / f"unicode_{name}.cc").write_text(
        text + "\n}  // namespace edgeqat\n", encoding="utf-8"
    )


def members(splitter: pre_tokenizers.PreTokenizer) -> set[int]:
    """The code points that a splitter leaves over."""
    return {ord(c) for piece, _ in splitter.pre_tokenize_str(TEXT) for c in piece}


def matched(pattern: str) -> set[int]:
    return members(pre_tokenizers.Split(Regex(pattern), "removed", invert=True))


def class_of_points() -> list[int]:
    """The bits of every code point."""
    found = [matched(rf"\p{{{category}}}+") for category in CATEGORIES]
    found += [matched(r"\s+"), matched(r"\w+"), digits()]
    found.append(set(POINTS) - members(pre_tokenizers.Punctuation("removed")))
    found.append({code for code in POINTS if joins("a" + chr(code))})
    classes = [0] * 0x110000
    for bit, points in enumerate(found):
        for code in points:
            classes[code] |= 1 << bit
    return classes


def digits() -> set[int]:
    """What the pre-tokenizer Digits takes for one."""
    split = pre_tokenizers.Digits(individual_digits=True).pre_tokenize_str
    single = {piece for piece, _ in split(TEXT) if len(piece) == 1}
    return {ord(c) for c in single if len(split(f"a{c}a")) == 3}


def joins(text: str) -> bool:
    """Whether two characters are one word (`single_word` of added tokens)."""
    return [piece for piece, _ in pre_tokenizers.Whitespace().pre_tokenize_str(text)] == [text]


CLASSES: list[int] = []


def classes() -> list[int]:
    if not CLASSES:
        CLASSES.extend(class_of_points())
    return CLASSES


def masks() -> list[int]:
    """The distinct classes."""
    return sorted(set(classes()))


def class_runs() -> list[int]:
    """Runs of one class from code point 0: length * 64 + index of the mask."""
    index = {mask: i for i, mask in enumerate(masks())}
    assert len(index) <= 64
    return [len(list(run)) * 64 + index[mask] for mask, run in groupby(classes())]


def lower() -> list[int]:
    """Runs of small letters: distance from the end of the last run, length, step, first small
    letter; alternating pairs have step 2. (U+0130 alone has two: unicode.cc knows it.)
    """
    small = normalizers.Lowercase().normalize_str
    found = {code: small(chr(code)) for code in POINTS}
    pairs = [(code, text) for code, text in found.items() if text != chr(code)]
    assert [code for code, text in pairs if len(text) > 1] == [0x130]
    numbers: list[int] = []
    last = at = 0
    while at < len(pairs):
        code, text = pairs[at]
        if len(text) > 1:
            at += 1
            continue
        best = (1, 1)
        for step in (1, 2):
            count = 1
            while at + count < len(pairs) and pairs[at + count] == (
                code + step * count,
                chr(ord(text[0]) + step * count),
            ):
                count += 1
            best = max(best, (count, step))
        count, step = best
        numbers += [code - last, count, step, ord(text)]
        last = code + step * (count - 1)
        at += count
    return numbers


def canonical() -> list[int]:
    """Single steps of canonical decomposition, without Hangul: distance from the last code point
    times 2, plus 1 where the pair composes; first; second or 0.
    """
    nfd, nfc = normalizers.NFD().normalize_str, normalizers.NFC().normalize_str
    numbers: list[int] = []
    last = 0
    for code in POINTS:
        given = unicodedata.decomposition(chr(code))
        if not given or given[0] == "<" or nfd(chr(code)) == chr(code):
            continue
        parts = [int(part, 16) for part in given.split()]
        text = "".join(map(chr, parts))
        assert len(parts) <= 2 and nfd(text) == nfd(chr(code))
        composes = len(parts) == 2 and nfc(text) == chr(code)
        numbers += [2 * (code - last) + composes, *parts, *[0] * (2 - len(parts))]
        last = code
    return numbers


def combining() -> list[int]:
    """Runs of one combining class: distance from the end of the last run, length, class."""
    nfd = normalizers.NFD().normalize_str

    def known(code: int) -> bool:  # the library's Unicode is older: classes it lacks are 0
        mark = chr(0x345)  # of the highest class: any other goes before it
        return code == 0x345 or nfd(mark + chr(code))[0] != mark

    found = [unicodedata.combining(chr(code)) for code in range(0x110000)]
    found = [rank and rank * known(code) for code, rank in enumerate(found)]
    numbers: list[int] = []
    at = last = 0
    for rank, run in groupby(found):
        length = len(list(run))
        if rank:
            numbers += [at - last, length, rank]
            last = at + length
        at += length
    return numbers


def compatible() -> list[int]:
    """Full compatibility decompositions where they differ from the canonical ones: distance from
    the last code point times 32 plus the count of code points, these; count 0: a run, with its
    length and first.
    """
    nfd, nfkd = normalizers.NFD().normalize_str, normalizers.NFKD().normalize_str
    found = [(c, nfkd(chr(c))) for c in POINTS if nfkd(chr(c)) != nfd(chr(c))]
    numbers: list[int] = []
    last = at = 0
    while at < len(found):
        code, text = found[at]
        count = 1
        while len(text) == 1 and found[at + count : at + count + 1] == [
            (code + count, chr(ord(text) + count))
        ]:
            count += 1
        if count > 1:
            numbers += [32 * (code - last), count, ord(text)]
        else:
            numbers += [32 * (code - last) + len(text), *map(ord, text)]
        last = code + count - 1
        at += count
    return numbers


if __name__ == "__main__":
    main()
