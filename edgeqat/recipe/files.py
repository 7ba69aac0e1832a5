"""Recipes as files: found by path or by the name of a shipped one, read, overridden, checked and
written.

Precedence: defaults < base < recipe < command line. `base: NAME` or `base: FILE` (a path from the
recipe's folder) starts from another recipe, which may have a base itself. Mappings are merged;
lists, numbers and names replace those of the base. The resolved recipe names no base.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import yaml
from pydantic import ValidationError

from edgeqat.errors import RecipeError, nearest
from edgeqat.recipe.data import coreset_value
from edgeqat.recipe.quant import adaptive_value
from edgeqat.recipe.recipe import Recipe
from edgeqat.recipe.section import VERSION, Section

RESOLVED = "recipe.resolved.yaml"  # the recipe of a packed folder, every default written out
_SUFFIXES = (".yaml", ".yml")
_BASE = "base"
_SHORTHANDS = {"coreset": coreset_value, "adaptive": adaptive_value}
LENGTHS = ("train.epochs", "train.minutes", "train.steps")  # one says how long to train
_INSTEAD = {  # a recipe that gives the first drops the others of its base
    "steps": ("epochs", "minutes"),
    "epochs": ("minutes",),
    "minutes": ("epochs",),
    "share": ("file",),
}


def load(source: str | Path | None, overrides: dict[str, Any] | None = None) -> Recipe:
    """A recipe from a shipped name or a file, with overrides {"train.steps": 20} applied on top."""
    values = _read(find(source)) if source else {}
    overrides = overrides or {}
    if _BASE in overrides:
        raise RecipeError(
            f"base: '{overrides[_BASE]}' stands in a recipe's file; use --recipe {overrides[_BASE]}"
        )
    given = {path for path, value in overrides.items() if value is not None}
    lengths = [path for path in LENGTHS if path in given]
    if len(lengths) > 1:
        one, other = lengths[:2]
        raise RecipeError(
            f"{one}: {overrides[one]} and {other}: {overrides[other]} both say how long to train; "
            "give one of them"
        )
    if lengths and isinstance(values.get("train"), dict):
        for path in LENGTHS:
            values["train"].pop(path.rpartition(".")[2], None)
    for path, value in overrides.items():
        _put(_expanded(values), path, value)
    recipe = validate(values)
    if "coreset.share" not in overrides and not recipe.coreset.chooses:
        _refuse_idle("coreset.", given, "no coreset is chosen; add for example --coreset 0.01")
    if recipe.train.method != "lowrank":
        _refuse_idle("train.lowrank.", given, "add --set train.method=lowrank")
    return recipe


def _refuse_idle(section: str, given: set[str], reason: str) -> None:
    for path in sorted(given):
        if path.startswith(section):
            raise RecipeError(f"{path}: {reason}")


def validate(values: dict[str, Any]) -> Recipe:
    """A checked recipe from plain values; raises RecipeError with one line for the first fault."""
    try:
        return Recipe.model_validate(values)
    except ValidationError as error:
        first = error.errors()[0]
        path = ".".join(str(part) for part in first["loc"])
        if first["type"] == "extra_forbidden":
            *parents, key = [str(part) for part in first["loc"]]
            known = _fields(parents)
            raise RecipeError(f"{path}: unknown key of the recipe; {nearest(key, known)}") from None
        message = first["msg"].removeprefix("Value error, ")
        shown = "" if isinstance(first["input"], dict) else f" '{first['input']}'"
        where = "" if message.startswith(path.rpartition(".")[2]) else f"{path}:{shown} "
        raise RecipeError(f"{where}{message[:1].lower()}{message[1:]}") from None


def parse_set(entry: str) -> tuple[str, Any]:
    """`train.steps=20` -> ("train.steps", 20); the value is read as YAML."""
    path, equals, text = entry.partition("=")
    if not equals or not path:
        raise RecipeError(f"--set '{entry}': write it as a.b=value, for example train.steps=20")
    try:
        value = yaml.safe_load(text)
        if isinstance(value, str):  # YAML 1.1 reads 1e-4 as text
            value = float(value)
    except yaml.YAMLError:
        raise RecipeError(f"--set '{entry}': the value is not YAML; quote it") from None
    except ValueError:
        pass
    return path, value


def dump(recipe: Recipe) -> str:
    """The resolved recipe as YAML."""
    return yaml.safe_dump(recipe.model_dump(exclude_none=True), sort_keys=False)


def folder() -> Path:
    """Where the shipped recipes are: inside the installed package or beside it in a checkout."""
    package = Path(__file__).parents[1]
    installed = package / "recipes"
    return installed if installed.is_dir() else package.parent / "recipes"


def shipped() -> dict[str, Path]:
    """Names of the shipped recipes and their files."""
    return {path.stem: path for path in sorted(folder().rglob("*.yaml"))}


def find(source: str | Path) -> Path:
    """The file of a recipe given by path or by shipped name."""
    path = Path(os.path.expanduser(str(source)))
    if path.suffix in _SUFFIXES:
        if path.is_file():
            return path
        raise RecipeError(f"recipe: '{source}' is not a file; `edgeqat recipes` lists the shipped")
    known = shipped()
    if str(source) not in known:
        raise RecipeError(f"recipe: '{source}' is unknown; {nearest(str(source), list(known))}")
    return known[str(source)]


def _read(path: Path, above: tuple[Path, ...] = ()) -> dict[str, Any]:
    """The values of a file over those of its base; `above`: the files that led here."""
    values = _mapping(path)
    version = values.get("version", VERSION)
    if not isinstance(version, int) or version > VERSION:
        raise RecipeError(
            f"version: {version} of recipe '{path}' is newer than {VERSION}; update edgeqat"
        )
    if _BASE not in values:
        return values
    chain = (*above, path.resolve())
    base = _base_file(values.pop(_BASE), path)
    if base.resolve() in chain:
        names = " -> ".join(f"'{one.name}'" for one in (*chain, base))
        raise RecipeError(f"base: {names} is a circle; take `base` out of one of them")
    return _merged(_read(base, chain), values)


def _mapping(path: Path) -> dict[str, Any]:
    try:
        values = yaml.safe_load(path.read_text(encoding="utf-8")) or {}
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        reason = " ".join(str(error).split())
        raise RecipeError(f"recipe: '{path}' is not readable YAML ({reason}); mend it") from None
    if not isinstance(values, dict):
        raise RecipeError(f"recipe: '{path}' holds no mapping; see `edgeqat recipes`")
    return values


def _base_file(name: Any, path: Path) -> Path:
    if not isinstance(name, str) or not name:
        shown = "nothing" if name is None else f"'{name}'"
        raise RecipeError(f"base: {shown} in recipe '{path}' is no name; write base: NAME or FILE")
    local = Path(os.path.expanduser(name))
    try:
        return find(path.parent / local if local.suffix in _SUFFIXES else name)
    except RecipeError as error:
        reason = str(error).removeprefix("recipe: ")
        raise RecipeError(f"base: {reason} (named in recipe '{path}')") from None


def _merged(base: dict[str, Any], values: dict[str, Any]) -> dict[str, Any]:
    """`values` over `base`, section by section; shorthands (`coreset: 0.01`) are sections too,
    `off` replaces the whole one.
    """
    merged = dict(base)
    for key, value in values.items():
        below = base.get(key)
        if key in _SHORTHANDS and value is not False:
            below, value = (_SHORTHANDS[key](one) for one in (below, value))
        if isinstance(below, dict) and isinstance(value, dict):
            value = _merged(below, value)
        merged[key] = value
    for given, others in _INSTEAD.items():
        for other in others if given in values else ():
            if other not in values:
                merged.pop(other, None)
    return merged


def _expanded(values: dict[str, Any]) -> dict[str, Any]:
    """A recipe's values with sections in the place of their shorthands."""
    if "coreset" in values:
        values["coreset"] = coreset_value(values["coreset"])
    quant = values.get("quant")
    if isinstance(quant, dict) and "adaptive" in quant:
        quant["adaptive"] = adaptive_value(quant["adaptive"])
    return values


def _put(values: dict[str, Any], path: str, value: Any) -> None:
    *parents, key = path.split(".")
    for parent in parents:
        values = values.setdefault(parent, {})
        if not isinstance(values, dict):
            raise RecipeError(f"{path}: '{parent}' holds a value, not a section")
    values[key] = value


def _fields(parents: list[str]) -> list[str]:
    section: Any = Recipe
    for parent in parents:
        annotation = section.model_fields[parent].annotation
        kinds = [annotation, *getattr(annotation, "__args__", ())]
        section = next(k for k in kinds if isinstance(k, type) and issubclass(k, Section))
    return list(section.model_fields)
