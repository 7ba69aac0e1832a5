"""The rows that `edgeqat compare` knows: ways of quantizing one float language model.

A row is a name and a format. Rows of EdgeQAT are computed at each scheme that is asked for. Peers
are packages of their own, each optional, and none is needed by EdgeQAT.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from edgeqat.bench.choice import choose
from edgeqat.errors import UsageError

FLOAT, TRAINED = "float", "ours-qat"
_FILES = {
    "F16": False,
    "Q8_0": False,
    "Q4_0": False,
    "Q4_K_M": True,
    "Q3_K_M": True,
    "Q2_K": True,
}  # fmt: skip  (types of llama.cpp's quantizer, and whether an importance matrix is tried)
_GROUPS = (128, 64)
_CACHES = {"": "f16", "-kv4": "q4_0"}


@dataclass(frozen=True)
class Kind:
    """What a row computes with. file, importance and cache are llama.cpp's: the type of its
    quantizer, whether it gets an importance matrix, the type of its KV cache. group: weights of a
    scale, in torch.
    """

    family: str
    format: str
    file: str = ""
    importance: bool = False
    cache: str = ""
    group: int = 0


def _llama_cpp() -> dict[str, Kind]:
    kinds = {}
    for file, takes in _FILES.items():
        for importance in (False, True) if takes else (False,):
            for suffix, cache in _CACHES.items():
                middle = "-imatrix" if importance else ""
                words = f"{file}{' with imatrix' if importance else ''}, KV {cache}"
                name = f"llama.cpp-{file.lower()}{middle}{suffix}"
                kinds[name] = Kind("llama.cpp", words, file, importance, cache)
    return kinds


def _grouped(family: str, name: str = "") -> dict[str, Kind]:
    return {
        f"{name or family}-g{group}": Kind(family, f"w4 group {group}", group=group)
        for group in _GROUPS
    }


KINDS: dict[str, Kind] = {
    FLOAT: Kind(FLOAT, "fp16"),
    "ours-ptq": Kind("ours", ""),
    "ours-start": Kind("ours", ""),
    TRAINED: Kind("ours", ""),
    **_llama_cpp(),
    **_grouped("auto-round"),
    **_grouped("torchao", "torchao-int4"),
    "torchao-int8dq": Kind("torchao", "w8a8 per row"),
}
# modules that a family needs, and how to get them
_NEEDS: dict[str, tuple[tuple[str, ...], str]] = {
    "llama.cpp": (("gguf", "llama_cpp"), "pip install 'edgeqat[peers]'"),
    "auto-round": (("auto_round",), "pip install auto-round"),
    "torchao": (("torchao",), "pip install torchao"),
}
_PACKAGES = {"llama.cpp": "llama-cpp-python"}


@dataclass(frozen=True)
class Row:
    """One row of the table; scheme: of ours, folder: a packed one that is there already."""

    name: str
    scheme: str = ""
    folder: str | None = None

    @property
    def kind(self) -> Kind:
        return KINDS[self.name]

    @property
    def format(self) -> str:
        """What the row computes with, in words."""
        named = f", {Path(self.folder).name}" if self.folder else ""
        return self.kind.format or f"{self.scheme}{named}"

    @property
    def label(self) -> str:
        """Name, and what tells rows of ours apart."""
        return f"{self.name} {self.format}" if self.scheme else self.name


def missing(name: str) -> str | None:
    """What is to be done before a row can be computed here; None where it can."""
    modules, way = _NEEDS.get(KINDS[name].family, ((), ""))
    return None if all(find_spec(module) for module in modules) else way


def packages(names: Sequence[str]) -> dict[str, str]:
    """Versions of the peers behind rows."""
    versions = {}
    for family in dict.fromkeys(KINDS[name].family for name in names):
        if family in _NEEDS:
            package = _PACKAGES.get(family, family)
            try:
                versions[package] = version(package)
            except PackageNotFoundError:
                versions[package] = "unknown"
    return versions


def select(
    wanted: str | None, schemes: Sequence[str], trained: Sequence[tuple[str, str]], steps: int
) -> list[Row]:
    """Rows from names and families, separated by commas; None: all that can be computed. `trained`
    are packed folders (scheme, folder), `steps` those of training at each scheme. The float model
    always comes first.
    """
    names = _names(wanted)
    rows = [Row(FLOAT)]
    for name in names:
        if KINDS[name].family != "ours":
            rows += [Row(name)] if name != FLOAT else []
        elif name != TRAINED:
            rows += [Row(name, scheme) for scheme in schemes]
        else:
            rows += [Row(name, scheme) for scheme in schemes if steps]
            rows += [Row(name, scheme, folder) for scheme, folder in trained]
    if wanted is not None and TRAINED in _parts(wanted) and not (steps or trained):
        raise UsageError(
            f"rows: '{TRAINED}' needs a packed folder or training; add --qat FOLDER or --steps N"
        )
    return rows


def _parts(wanted: str) -> list[str]:
    return [part.strip() for part in wanted.split(",") if part.strip()]


def _names(wanted: str | None) -> list[str]:
    if wanted is None:
        return [name for name in KINDS if missing(name) is None]
    families = {name: kind.family for name, kind in KINDS.items()}
    chosen = choose("rows", _parts(wanted), families, missing)
    if not chosen:
        raise UsageError("rows: none is named; write for example --rows ours,llama.cpp")
    return chosen


def listing() -> list[tuple[str, str]]:
    """Every row, and whether it can be computed here or how to get what it needs."""
    return [(name, missing(name) or "available") for name in KINDS]


def described(row: Row) -> dict[str, Any]:
    """What a row of compare.json begins with."""
    return {"row": row.name, "format": row.format, "folder": row.folder}
