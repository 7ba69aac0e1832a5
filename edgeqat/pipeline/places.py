"""Local places of a recipe as absolute paths: other verbs read the resolved recipe of a result from
any folder, and it means the same there.
"""

from __future__ import annotations

import os
from pathlib import Path

from edgeqat.aliases import DEMO
from edgeqat.checkpoint import CONFIG
from edgeqat.data.sources import SELF
from edgeqat.gguf_header import is_gguf
from edgeqat.recipe.data import DataSection
from edgeqat.recipe.recipe import Recipe


def absolute(recipe: Recipe) -> Recipe:
    """The recipe with absolute paths in the place of relative ones. Names of hubs, of aliases, of
    architectures and of what is not there stay, and so do texts below a data root.
    """
    model, distill, coreset = recipe.model, recipe.distill, recipe.coreset
    name = model.name if recipe.makes_float else _model(model.name)
    places = {"name": name, "weights": _path(model.weights)}
    return recipe.model_copy(
        update={
            "model": model.model_copy(update=places),
            "data": _data(recipe.data),
            "distill": distill.model_copy(update={"teacher": _model(distill.teacher)}),
            "coreset": coreset.model_copy(update={"file": _path(coreset.file)}),
        }
    )


def _data(data: DataSection) -> DataSection:
    root = _path(data.root)
    places: dict[str, str | None] = {"root": root}
    if root is None or not Path(root).is_dir():  # a file's held-out text may be anywhere
        places |= {"valid": _text(data.valid)}
    if root is None:
        places |= {"train": _text(data.train)}
    mix = {str(_text(name)): share for name, share in data.mix.items()}
    return data.model_copy(update={**places, "mix": mix})


def _model(name: str | None) -> str | None:
    """A model's folder or GGUF file; an architecture may be called like a folder that holds no
    model.
    """
    if name is None or name == DEMO:
        return name
    if not (Path(name).expanduser() / CONFIG).is_file() and not is_gguf(name):
        return name
    return _path(name)


def _text(name: str | None) -> str | None:
    """A text, or a part `FOLDER#valid` of one."""
    if name is None or name.partition("#")[0] in (DEMO, SELF):
        return name
    path = _path(name)
    folder, mark, part = name.rpartition("#")
    return f"{_path(folder)}#{part}" if path == name and mark and folder else path


def _path(name: str | None) -> str | None:
    if name is None or not Path(name).expanduser().exists():
        return name
    return os.path.abspath(Path(name).expanduser())
