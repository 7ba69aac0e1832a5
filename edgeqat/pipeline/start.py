"""What a run refuses before torch and transformers are imported, which takes seconds: an output
that is there, a model, a text or a package that is not. The rest is checked where it is loaded.
"""

from __future__ import annotations

import os
from importlib.util import find_spec
from pathlib import Path

from edgeqat import source
from edgeqat.checkpoint import CONFIG, IMAGE, check_output
from edgeqat.data.sources import ROOT_VARIABLE, SELF, mixed, sources
from edgeqat.errors import RecipeError, UsageError
from edgeqat.output import real
from edgeqat.pipeline.places import absolute
from edgeqat.recipe.recipe import Recipe
from edgeqat.vision import zoo

_VIT = "vit-tiny-"
_OF_IMAGES = (f'"{IMAGE}"', "ImageClassification")  # in a config.json


def run_folder(output: Path) -> Path:
    """The run folder of an output: beside what a link leads to, on its disk."""
    place = real(output)
    return place.with_name(f"{place.name}.run")


def check_start(output: Path, overwrite: bool) -> None:
    """Refuse early, before anything is loaded, what open_run would refuse without looking."""
    if not run_folder(output).exists():
        check_output(output, overwrite)


def check_extras(recipe: Recipe) -> None:
    """Refuse adapters where peft, whose files they are, is missing."""
    if recipe.train.method == "lowrank" and find_spec("peft") is None:
        raise UsageError(
            "train.method: 'lowrank' writes peft's files, and peft is not installed; "
            "pip install 'edgeqat[lowrank]'"
        )


def check_makes_float(recipe: Recipe) -> None:
    """Refuse a recipe for `edgeqat train` without a network, with fields that training from scratch
    would not heed, or whose text is not where it says.

    Texts that EDGEQAT_DATA may hold, and images, are looked for when they are loaded.
    """
    _check_heeded(recipe)
    if SELF in (recipe.data.train, *recipe.data.mix):
        raise RecipeError(
            f"data.train: '{SELF}' is text of a trained model, and this one is not yet; give --data"
        )
    if recipe.architecture is not None:
        _check_text(recipe)
    elif not (is_of_images(recipe.model.name) and recipe.quant.bits().is_float):
        raise RecipeError("architecture: the recipe has none; `edgeqat train` needs a float recipe")


def check_sources(recipe: Recipe) -> None:
    """Refuse a recipe to quantize whose model is nowhere, or whose text is not where it says.

    Texts that EDGEQAT_DATA may hold, and images, are looked for when they are loaded.
    """
    if recipe.makes_float:
        return
    name = recipe.model.name
    if _is_architecture(name):
        return
    source.check(name)
    if not is_of_images(name):
        _check_text(recipe)


def _check_heeded(recipe: Recipe) -> None:
    """Refuse what training from scratch would not heed."""
    shape = recipe.architecture
    unheeded = {
        "coreset": recipe.coreset.is_on,
        "model.weights": recipe.model.weights is not None,
        "train.method": recipe.train.method != "full",
        "distill.teacher": recipe.distill.teacher is not None,
        "guide": any(term.weight > 0 for _, term in recipe.guide),
        "correct.weight": recipe.correct.weight > 0,
    }
    for field, given in unheeded.items():
        if given:
            raise RecipeError(
                f"{field}: a float model is trained from scratch on all data; leave it out"
            )
    if shape is not None and recipe.data.context > shape.positions:
        raise RecipeError(
            f"data.context: {recipe.data.context} exceeds the {shape.positions} positions of "
            "architecture.positions; lower it or raise those"
        )


def _check_text(recipe: Recipe) -> None:
    if not os.environ.get(ROOT_VARIABLE):
        data = absolute(recipe).data
        sources(data)
        mixed(data)


def is_of_images(name: str) -> bool:
    """Whether a model is an image classifier, as far as its name or folder tells."""
    return _is_architecture(name) or _is_image_folder(Path(name).expanduser())


def _is_architecture(name: str) -> bool:
    named = zoo.parse(name) is not None or name.startswith(_VIT)
    return named and not Path(name).is_dir()


def _is_image_folder(folder: Path) -> bool:
    file = folder / CONFIG
    text = file.read_text(encoding="utf-8", errors="replace") if file.is_file() else ""
    return any(word in text for word in _OF_IMAGES)
