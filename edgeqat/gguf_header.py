"""The header of a GGUF file, read without torch or gguf: what the file holds, and why it cannot be
a float model.

    magic, version, number of tensors, number of fields   "GGUF", u32, u64, u64
    fields                                                name, type, value
    tensors                                               name, sizes, type, offset
    data                                                  from the next multiple of the alignment

Arrays are skipped; of an array only its length is kept.
"""

from __future__ import annotations

import math
import mmap
import struct
from collections import Counter
from dataclasses import dataclass, field
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from edgeqat.errors import ModelError, UsageError, nearest
from edgeqat.families import FAMILIES

SUFFIX = ".gguf"
MAGIC = b"GGUF"
_VERSIONS = (2, 3)
_ALIGNMENT = 32
_SCALARS = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q",
            12: "d"}  # fmt: skip
_STRING, _ARRAY = 8, 9
# type: name, weights of a block, its bytes
READABLE = {
    0: ("F32", 1, 4), 1: ("F16", 1, 2), 30: ("BF16", 1, 2),
    2: ("Q4_0", 32, 18), 3: ("Q4_1", 32, 20), 6: ("Q5_0", 32, 22), 7: ("Q5_1", 32, 24),
    8: ("Q8_0", 32, 34), 10: ("Q2_K", 256, 84), 11: ("Q3_K", 256, 110), 12: ("Q4_K", 256, 144),
    13: ("Q5_K", 256, 176), 14: ("Q6_K", 256, 210), 16: ("IQ2_XXS", 256, 66),
    17: ("IQ2_XS", 256, 74), 18: ("IQ3_XXS", 256, 98), 19: ("IQ1_S", 256, 50),
    20: ("IQ4_NL", 32, 18), 21: ("IQ3_S", 256, 110), 22: ("IQ2_S", 256, 82),
    23: ("IQ4_XS", 256, 136), 29: ("IQ1_M", 256, 56), 34: ("TQ1_0", 256, 54),
    35: ("TQ2_0", 256, 66), 39: ("MXFP4", 32, 17),
}  # fmt: skip
_UNREADABLE = {
    9: "Q8_1", 15: "Q8_K", 24: "I8", 25: "I16", 26: "I32", 27: "I64", 28: "F64", 31: "Q4_0_4_4",
    32: "Q4_0_4_8", 33: "Q4_0_8_8", 36: "IQ4_NL_4_4", 40: "NVFP4", 41: "Q1_0",
}  # fmt: skip
_WAY = "name a file of this model with other weights (F16, Q8_0 or Q4_K_M), or its folder"


@dataclass(frozen=True)
class Tensor:
    """shape: rows before columns; offset: of its first byte in the file."""

    name: str
    shape: tuple[int, ...]
    kind: int
    offset: int

    @property
    def size(self) -> int:
        return math.prod(self.shape)

    @property
    def stored_bytes(self) -> int:
        _, block, size = READABLE[self.kind]
        return self.size // block * size


@dataclass
class Header:
    """Fields by their names, and tensors in the order of the file."""

    fields: dict[str, Any] = field(default_factory=dict)
    tensors: list[Tensor] = field(default_factory=list)

    @property
    def architecture(self) -> str:
        return str(self.fields.get("general.architecture", ""))

    def architecture_field(self, name: str, default: Any = None) -> Any:
        """A field of the file's architecture."""
        return self.fields.get(f"{self.architecture}.{name}", default)

    def types(self) -> str:
        """The types of the weights, those of most weights first: `Q4_1, Q8_0, F32`."""
        sizes: Counter[str] = Counter()
        for tensor in self.tensors:
            sizes[READABLE[tensor.kind][0]] += tensor.size
        return ", ".join(name for name, _ in sizes.most_common())


def is_gguf(name: str) -> bool:
    """Whether a model name is that of a GGUF file: by its suffix, or of a file by its start."""
    path = Path(name).expanduser()
    if path.is_dir():
        return False
    if path.suffix.lower() == SUFFIX:
        return True
    try:
        with open(path, "rb") as file:
            return file.read(4) == MAGIC
    except OSError:
        return False


def check(name: str) -> Header:
    """The header of a file that can be read as a float model. Raises ModelError in one line, and
    UsageError where the gguf package, which reads the weights, is missing.
    """
    if find_spec("gguf") is None:
        raise UsageError("gguf: its package is not installed; pip install 'edgeqat[gguf]'")
    path = Path(name).expanduser()
    if not path.is_file():
        raise ModelError(f"model: '{path}' does not exist; name a GGUF file or a model folder")
    contents = header(path)
    fields, architecture = contents.fields, contents.architecture
    parts = fields.get("split.count", 0)
    if isinstance(parts, int) and parts > 1:
        raise ModelError(
            f"model: '{path}' is one of {parts} parts of a model; join them with `llama-gguf-split "
            "--merge FIRST_PART WHOLE.gguf` and name the whole"
        )
    kind = fields.get("general.type", "model")
    if kind != "model" or architecture == "clip":
        what = "a projector of images" if kind == "mmproj" or architecture == "clip" else kind
        raise ModelError(f"model: '{path}' holds no language model ({what}); name the model's file")
    known = sorted({row.from_gguf for row in FAMILIES.values() if row.from_gguf})
    if architecture not in known:
        raise ModelError(
            f"model: architecture '{architecture}' of '{path}' cannot be read from GGUF; "
            f"{nearest(architecture, known)}"
        )
    if contents.architecture_field("expert_count", 0):
        raise ModelError(f"model: '{path}' is a mixture of experts; name a dense model")
    if not any(tensor.name.startswith("blk.") for tensor in contents.tensors):
        raise ModelError(
            f"model: '{path}' holds a vocabulary and no weights; name a file with the weights"
        )
    if not fields.get("tokenizer.ggml.tokens"):
        raise ModelError(
            f"model: '{path}' holds no tokenizer (tokenizer.ggml.tokens); name a file with one"
        )
    return contents


def header(path: Path) -> Header:
    """The header of a GGUF file of any use. Raises ModelError in one line."""
    status = path.stat()
    return _read(path, status.st_size, status.st_mtime_ns)


@cache
def _read(path: Path, size: int, changed: int) -> Header:
    """The header of a file, read anew when its size or time changes."""
    try:
        with open(path, "rb") as file:
            start = file.read(24)
            _check_start(path, start)
            with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
                return _parsed(path, data)
    except OSError as error:
        raise ModelError(f"model: '{path}' cannot be read ({error.strerror})") from None


def _check_start(path: Path, start: bytes) -> None:
    if start[:4] != MAGIC:
        if not start:
            what = "is empty"
        elif start.startswith(b"version https://git-"):
            what = "is a pointer of Git LFS, `git lfs pull` gets the file"
        else:
            what = f"starts with {start[:4]!r}"
        raise ModelError(f"model: '{path}' is no GGUF file ({what}); download it again")
    if len(start) < 24:
        raise _cut_short(path, f"{len(start)} bytes")
    version = int.from_bytes(start[4:8], "little")
    if version not in _VERSIONS:
        order = " in the byte order of other machines" if version >= 1 << 16 else ""
        shown = int.from_bytes(start[4:8], "big") if order else version
        raise ModelError(
            f"model: '{path}' is GGUF version {shown}{order}; convert it with a newer llama.cpp "
            "(versions 2 and 3 are read)"
        )


def _cut_short(path: Path, reason: str) -> ModelError:
    return ModelError(f"model: '{path}' is cut short ({reason}); download it again")


class _Cursor:
    """Values one after the other; struct.error where the file ends."""

    def __init__(self, data: mmap.mmap) -> None:
        self.data, self.at = data, 4

    def take(self, form: str) -> tuple[Any, ...]:
        values = struct.unpack_from("<" + form, self.data, self.at)
        self.at += struct.calcsize("<" + form)
        return values

    def skip(self, size: int) -> None:
        self.at += size
        if self.at > len(self.data):
            raise struct.error

    def text(self) -> str:
        (size,) = self.take("Q")
        start = self.at
        self.skip(size)
        return self.data[start : self.at].decode("utf-8")

    def value(self, kind: int) -> Any:
        """A value; of an array its length."""
        if kind in _SCALARS:
            return self.take(_SCALARS[kind])[0]
        if kind == _STRING:
            return self.text()
        if kind != _ARRAY:
            raise ValueError(f"a field of type {kind}")
        inner, count = self.take("IQ")
        if inner in _SCALARS:
            self.skip(count * struct.calcsize(_SCALARS[inner]))
            return count
        if inner != _STRING:
            raise ValueError(f"an array of type {inner}")
        length, at = struct.Struct("<Q").unpack_from, self.at
        for _ in range(count):  # a vocabulary is a hundred thousand of them
            at += 8 + length(self.data, at)[0]
        self.skip(at - self.at)
        return count


def _parsed(path: Path, data: mmap.mmap) -> Header:
    header, cursor = Header(), _Cursor(data)
    entries: list[tuple[str, tuple[int, ...], int, int]] = []
    try:
        _, tensors, fields = cursor.take("IQQ")
        for _ in range(fields):
            name = cursor.text()
            header.fields[name] = cursor.value(cursor.take("I")[0])
        for _ in range(tensors):
            name, dimensions = cursor.text(), cursor.take("I")[0]
            if dimensions > 4:
                raise ValueError(f"a tensor of {dimensions} dimensions")
            shape = cursor.take(f"{dimensions}Q")[::-1]
            entries.append((name, shape, *cursor.take("IQ")))
    except struct.error:
        raise _cut_short(path, f"its header does not end within {len(data)} bytes") from None
    except ValueError as error:  # also of bytes that are no text
        raise ModelError(
            f"model: the header of '{path}' is damaged ({error}); download it again"
        ) from None
    alignment = header.fields.get("general.alignment", _ALIGNMENT)
    if not isinstance(alignment, int) or alignment < 1:
        raise ModelError(
            f"model: general.alignment {alignment!r} of '{path}' is damaged; download it again"
        )
    start, end = -(-cursor.at // alignment) * alignment, 0
    for name, shape, kind, offset in entries:
        if kind not in READABLE:
            shown = f"{kind} ({_UNREADABLE[kind]})" if kind in _UNREADABLE else str(kind)
            raise ModelError(
                f"model: type {shown} of tensor {name} in '{path}' cannot be read; {_WAY}"
            )
        tensor = Tensor(name, shape, kind, start + offset)
        header.tensors.append(tensor)
        end = max(end, tensor.offset + tensor.stored_bytes)
    if end > len(data):
        raise _cut_short(path, f"it has {len(data)} of {end} bytes")
    return header
