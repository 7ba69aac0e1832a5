"""The packed folder on disk: safetensors with aligned tiles, hashes in config.json, whole or
absent. No modules here.

Tiles come first in model.safetensors and the header is padded with blanks, so every tile starts on
64 bytes of the file and a runtime maps it and computes on it; the safetensors library sorts by
dtype, so we write the (trivial) container ourselves and read it with the library. Every file's
SHA-256 is in config.json, and config.json's own hash is in itself, computed with that field empty.
docs/format.md is the full description.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edgeqat.errors import FormatError, OutputError
from edgeqat.output import real, storage
from edgeqat.recipe.files import RESOLVED

if TYPE_CHECKING:
    from torch import Tensor  # the engine reads folders without torch

FORMAT_VERSION = 1
ADAPTIVE_VERSION = 2  # as 1, and tokens have two widths
ROTATED_VERSION = 3  # as 1 or 2, and the residual stream is rotated
VERSIONS = (FORMAT_VERSION, ADAPTIVE_VERSION, ROTATED_VERSION)
WEIGHTS = "model.safetensors"
CONFIG = "config.json"
METRICS = "metrics.json"
RECORDS = "metrics.jsonl"
IMAGE = "image"  # the part of config.json that only image classifiers have
METHOD = "edgeqat"
_ALIGN = 64
_NAMES = {
    "uint8": "U8", "int8": "I8", "bool": "BOOL", "int64": "I64",
    "float16": "F16", "bfloat16": "BF16", "float32": "F32", "int32": "I32",
}  # fmt: skip
_ORDER = ["U8", "I64", "F32", "I32", "F16", "BF16", "I8", "BOOL"]  # tiles first, then by alignment


def write_tensors(path: Path, tensors: dict[str, Tensor]) -> None:
    """Write a safetensors file: uint8 tiles first, data starting on 64 bytes."""
    import torch

    text, names, _ = _layout(tensors)
    with open(path, "wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        for name in names:
            flat = tensors[name].detach().cpu().contiguous().reshape(-1)
            file.write(flat.view(torch.uint8).numpy().data)


def file_bytes(tensors: dict[str, Tensor]) -> int:
    """The size of the file that write_tensors would write; the tensors may be on `meta`."""
    text, _, end = _layout(tensors)
    return 8 + len(text) + end


def _layout(tensors: dict[str, Tensor]) -> tuple[bytes, list[str], int]:
    """The header of a safetensors file, the order of its tensors, and the bytes of their data."""
    kinds = {n: _NAMES[str(tensor.dtype).removeprefix("torch.")] for n, tensor in tensors.items()}
    names = sorted(tensors, key=lambda name: (_ORDER.index(kinds[name]), name))
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    end = 0
    for name in names:
        tensor = tensors[name]
        size = tensor.numel() * tensor.element_size()
        header[name] = {
            "dtype": kinds[name],
            "shape": list(tensor.shape),
            "data_offsets": [end, end + size],
        }
        end += size
    text = json.dumps(header, separators=(",", ":")).encode()
    return text + b" " * (-(len(text) + 8) % _ALIGN), names, end


def read_tensors(path: Path) -> dict[str, Tensor]:
    """All tensors of a safetensors file; a damaged file is a FormatError."""
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        return load_file(path)
    except (SafetensorError, OSError) as error:
        raise FormatError(
            f"{path.name}: '{path}' is not a readable safetensors file ({error}); copy it again"
        ) from None


def read_header(path: Path) -> dict[str, Any]:
    """Names, dtypes, shapes and offsets of a safetensors file, without its data."""
    try:
        with open(path, "rb") as file:
            size = int.from_bytes(file.read(8), "little")
            header = json.loads(file.read(size)) if size < path.stat().st_size else None
    except (OSError, ValueError, RecursionError):
        header = None
    if not isinstance(header, dict):
        raise FormatError(f"{path.name}: '{path}' has no readable header; copy the folder again")
    header.pop("__metadata__", None)
    return header


def write_config(folder: Path, config: dict[str, Any]) -> None:
    """Write config.json last: with the hash of every other file of the folder and of itself."""
    quantization = config["quantization_config"]
    files = (f for f in folder.rglob("*") if f.is_file() and f != folder / CONFIG)
    names = sorted(file.relative_to(folder).as_posix() for file in files)
    quantization["sha256"] = {name: sha256(folder / name) for name in names}
    quantization["config_sha256"] = ""
    quantization["config_sha256"] = _config_hash(config)
    (folder / CONFIG).write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")


def read_config(folder: Path) -> dict[str, Any]:
    """config.json of a packed folder, checked: ours, of a known version, unchanged."""
    path = folder / CONFIG
    if not folder.is_dir():
        what = "is a file" if folder.exists() else "does not exist"
        raise FormatError(f"folder: '{folder}' {what}; name a folder `edgeqat quantize` wrote")
    if not path.is_file():
        raise FormatError(
            f"{CONFIG}: '{folder}' has none; name a folder that `edgeqat quantize` wrote"
        )
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError):
        config = None
    if not isinstance(config, dict):
        raise FormatError(f"{CONFIG}: '{path}' is no JSON object; copy the folder again")
    check_config(config.get("quantization_config"), str(folder))
    if _config_hash(config) != config["quantization_config"].get("config_sha256"):
        raise FormatError(f"{CONFIG}: '{path}' was changed after packing; copy the folder again")
    return config


def is_packed(folder: Path) -> bool:
    """Whether a folder says that it is a packed one; nothing else is checked."""
    try:
        config = json.loads((folder / CONFIG).read_text(encoding="utf-8"))
        return config["quantization_config"]["quant_method"] == METHOD
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        return False


def check_config(quantization: dict[str, Any] | None, where: str) -> None:
    """Refuse a quantization_config that is missing, of another method or of an unknown version."""
    if not isinstance(quantization, dict):
        raise FormatError(
            f"quantization_config: '{where}' has none in {CONFIG}; run `edgeqat quantize` on it "
            "first"
        )
    if quantization.get("quant_method") != METHOD:
        method = quantization.get("quant_method")
        raise FormatError(
            f"quant_method: '{method}' of '{where}' is not '{METHOD}'; load it elsewhere"
        )
    version = quantization.get("format_version")
    if version not in VERSIONS:
        known = ", ".join(map(str, VERSIONS))
        raise FormatError(
            f"format_version: {version} of '{where}' is unknown (known: {known}); update edgeqat"
        )


def verify(folder: Path) -> dict[str, Any]:
    """Check every file of a packed folder against its hash; returns config.json."""
    config = read_config(folder)
    for name, expected in config["quantization_config"]["sha256"].items():
        path = folder / name
        if not path.is_file():
            raise FormatError(f"{name}: missing from '{folder}'; copy the folder again")
        if sha256(path) != expected:
            raise FormatError(f"{name}: '{path}' was changed after packing; copy the folder again")
    return config


def sha256(path: Path) -> str:
    """Hex SHA-256 of a file."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def check_output(target: Path, overwrite: bool) -> None:
    """Refuse an output place that exists (without overwrite) or cannot be written."""
    if target.exists() and not overwrite:
        raise OutputError(f"output: '{target}' exists; choose another --output or add --overwrite")
    if target.exists() and not (target.is_dir() and _is_ours(target)):
        raise OutputError(
            f"output: '{target}' is not a folder edgeqat wrote, so it is not replaced; choose "
            "another"
        )
    parent = real(target).parent
    while not parent.exists():
        parent = parent.parent
    if not parent.is_dir() or not os.access(parent, os.W_OK):
        raise OutputError(f"output: '{parent}' cannot be written; choose another --output")


@contextmanager
def atomic_folder(
    target: Path, overwrite: bool = False, inside: Path | None = None
) -> Iterator[Path]:
    """A temporary folder that becomes `target` when the block ends well and vanishes when it does
    not: a sibling, or `inside` another folder of the same disk. A link stands for what it leads to.
    """
    check_output(target, overwrite)
    target = real(target)
    made = [parent for parent in target.parents if not parent.exists()]
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        temporary = Path(tempfile.mkdtemp(prefix=f".{target.name}.", dir=inside or target.parent))
    except OSError as error:
        raise OutputError(
            f"output: '{target}' cannot be made ({error.strerror}); choose another"
        ) from None
    try:
        with storage(target):
            yield temporary
            _open_to_umask(temporary)
            if target.exists():
                old = temporary.with_name(temporary.name + ".old")
                target.rename(old)
                temporary.rename(target)
                shutil.rmtree(old)
            else:
                temporary.rename(target)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
        for parent in made:  # innermost first; those that hold the target stay
            with suppress(OSError):
                parent.rmdir()


def _open_to_umask(folder: Path) -> None:
    """Give folder and files the permissions that plain creation would have (mkdtemp gives 0700)."""
    umask = os.umask(0)
    os.umask(umask)
    folder.chmod(0o777 & ~umask)
    for file in folder.rglob("*"):
        file.chmod((0o777 if file.is_dir() else 0o666) & ~umask)


def _is_ours(folder: Path) -> bool:
    return not any(folder.iterdir()) or (folder / RESOLVED).is_file()


def _config_hash(config: dict[str, Any]) -> str:
    quantization = {**config["quantization_config"], "config_sha256": ""}
    text = json.dumps({**config, "quantization_config": quantization}, sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()
