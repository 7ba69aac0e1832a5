"""What a run of an image classifier starts from: the float model and its images, checked against
each other.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import set_seed

from edgeqat.checkpoint import CONFIG, WEIGHTS, write_tensors
from edgeqat.coreset.samples import ImageSamples
from edgeqat.data.classes import are_named, labelled_as, model_names
from edgeqat.data.images import Images, load_images
from edgeqat.errors import DataError, RecipeError, UsageError
from edgeqat.evaluate.accuracy import accuracy, recovered
from edgeqat.evaluate.metric import TOP1
from edgeqat.hf import image_folder, image_model
from edgeqat.hf.image_model import ImageModel
from edgeqat.nn.logits import class_logits
from edgeqat.pipeline.task import Score, Task
from edgeqat.recipe.data import DataSection
from edgeqat.recipe.quant import QuantSection
from edgeqat.recipe.recipe import Recipe
from edgeqat.scheme import FLOAT_BITS
from edgeqat.train import processes
from edgeqat.train.correction import Correction
from edgeqat.train.guidance import Guidance
from edgeqat.train.image_objective import ImageObjective

_FEW = 64  # images of a comparison
_CALIBRATION_IMAGES = 64  # of one forward pass

is_image_model = image_model.is_image_model


@dataclass
class ImageTask(Task):
    """Model, what describes it, and the images of a run; the teacher is the float model itself."""

    metric = TOP1

    model: nn.Module
    kind: ImageModel
    train: Images
    valid: Images
    teacher: None = None

    def describe(self) -> str:
        side = self.kind.size
        return (
            f"{len(self.train)} training images, {len(self.valid)} held-out ones of "
            f"{side} x {side} pixels, {self.kind.classes} classes"
        )

    def source(self, recipe: Recipe) -> str:
        return place_of(recipe.data, self.kind.data)

    def evaluate(self, model: nn.Module) -> Score:
        return accuracy(model, self.valid, self.kind.normalizer())

    def conditions(self, recipe: Recipe) -> dict[str, Any]:
        return {"images": len(self.valid), "size": self.kind.size, "classes": self.kind.classes}

    def gap(self, score: Score, floating: Score) -> float:
        return math.log(max(floating["top1"], 1.0) / max(score["top1"], 1.0))

    def recovered(self, floating: Score, ptq: Score, qat: Score) -> float | None:
        return recovered(floating["top1"], ptq["top1"], qat["top1"])

    def objective(self, recipe: Recipe, teacher: nn.Module | None) -> ImageObjective:
        return ImageObjective(
            recipe.distill,
            teacher,
            self.kind.normalizer(),
            recipe.data.images.augment,
            recipe.seed,
            None if teacher is None else recipe.correct,
        )

    def samples(self, recipe: Recipe) -> ImageSamples:
        return ImageSamples(
            self.train,
            self.kind.normalizer(),
            recipe.coreset.norm_images,
            recipe.data.images.augment,
        )

    def calibration(self, recipe: Recipe) -> Iterable[Tensor]:
        """Clean training images, as many as a training step has, however it is split into batches
        and processes; a few at a time.
        """
        train = recipe.train
        size = train.batch_size * train.accumulation * processes.count()
        wanted = min(recipe.quant.activation.calibration_batches * size, len(self.train))
        device = next(self.model.parameters()).device
        normalizer = self.kind.normalizer()
        return (
            normalizer(pixels.to(device))
            for pixels in self.train.evenly(wanted).pixels.split(_CALIBRATION_IMAGES)
        )

    def batch(self, size: int) -> dict[str, Tensor]:
        return self.train.__getitems__(list(range(min(size, len(self.train)))))

    @torch.no_grad()
    def outputs(self, model: nn.Module) -> Tensor:
        return class_logits(model.eval(), self.kind.normalizer()(self.valid.pixels[:_FEW]))

    def write(self, folder: Path, model: Any, quant: QuantSection) -> None:
        image_folder.write(folder, model, quant, self.kind)

    def seal(self, folder: Path, model: Any, quant: QuantSection, files: dict[str, str]) -> None:
        image_folder.seal(folder, model, quant, self.kind, files)

    def untrained(self, recipe: Recipe) -> nn.Module:
        return self.kind.build()

    def write_float(self, folder: Path, model: nn.Module, recipe: Recipe) -> None:
        tensors = {name: t.detach().cpu() for name, t in model.state_dict().items()}
        write_tensors(folder / WEIGHTS, tensors)
        text = json.dumps(self.kind.to_config(), indent=2) + "\n"
        (folder / CONFIG).write_text(text, encoding="utf-8")


def untrained_classifier(recipe: Recipe) -> ImageTask:
    """What `edgeqat train` starts from: a random classifier of the classes of its images."""
    kind = image_model.named(recipe.model.name).sized(recipe.data.images.size)
    images = load_both(recipe.data, kind)
    if are_named(images[0].names):  # they are the model's classes
        kind = image_model.named(recipe.model.name, len(images[0].names)).sized(kind.size)
    kind, (train, valid) = matched(kind, recipe.data, images)
    if not train.labelled:
        raise DataError("data: the training images have no labels; name labelled ones")
    return ImageTask(kind.build(), kind, train, valid)


def load_classifier(recipe: Recipe) -> ImageTask:
    """Load and cross-check everything a run of a classifier needs; seeds every generator first."""
    set_seed(recipe.seed)
    check_recipe(recipe)
    model, kind = image_model.load(recipe.model.name, recipe.model.weights)
    size = recipe.data.images.size
    placed = any("position_embedding" in name for name, _ in model.named_parameters())
    if placed and size not in (None, kind.size):
        raise UsageError(
            f"data.images.size: {size}: the model's positions are those of {kind.size} pixels a "
            "side; leave it out"
        )
    kind = kind.sized(size)
    _keep_paths(model)
    Correction(recipe.correct).check(model, model)
    kind, (train, valid) = matched(kind, recipe.data, load_both(recipe.data, kind))
    inputs = ImageTask(model, kind, train, valid)
    if not inputs.train.labelled and recipe.distill.weight < 1:
        raise UsageError(
            f"distill.weight: {recipe.distill.weight:g} needs labels and the training images have "
            "none; set it to 1"
        )
    if not inputs.train.labelled and recipe.train.compare_float:
        raise UsageError(
            "train.compare_float: true needs labels and the training images have none; set it to "
            "false"
        )
    return inputs


def _keep_paths(model: nn.Module) -> None:
    """Stochastic depth off: the blocks of a student that drops them are far from the teacher's,
    whatever its weights.
    """
    for module in model.modules():
        if hasattr(module, "drop_prob"):
            module.drop_prob = 0.0  # type: ignore[assignment]


def load_both(data: DataSection, kind: ImageModel) -> tuple[Images, Images]:
    """Training and held-out images for a classifier, labelled as they are in the data. Raises
    DataError in one line.
    """
    if processes.count() > 1:  # the first process decodes, the others read what it has kept
        processes.broadcast_from_first(lambda: len(_both(data, kind)))
    return _both(data, kind)


def _both(data: DataSection, kind: ImageModel) -> tuple[Images, Images]:
    place, wanted = place_of(data, kind.data), data.images
    train = load_images(place, "train", kind.size, wanted.label, wanted.train_images)
    return train, held_out(data, kind)


def held_out(data: DataSection, kind: ImageModel) -> Images:
    """The held-out images of load_both() alone."""
    place, wanted = place_of(data, kind.data), data.images
    valid = load_images(place, "test", kind.size, wanted.label, wanted.valid_images)
    if not valid.labelled:
        raise DataError(f"data: the test images of '{place}' have no labels; name labelled ones")
    return valid


def matched(
    kind: ImageModel, data: DataSection, images: Sequence[Images]
) -> tuple[ImageModel, list[Images]]:
    """A classifier with the names of its classes (where it has none, of the first images that have
    some), and images with its labels. Raises DataError in one line.
    """
    place = place_of(data, kind.data)
    for part in images:
        kind = replace(kind, labels=model_names(kind.labels, kind.classes, part, place))
    labelled = [labelled_as(part, kind.labels, place) for part in images]
    largest = max(int(part.labels.max()) for part in labelled)
    if largest >= kind.classes:
        raise DataError(
            f"data: label {largest} of '{place}' is outside the model's 0..{kind.classes - 1}; "
            "name the data it was trained on"
        )
    return kind, labelled


def place_of(data: DataSection, known: str | None) -> str:
    """Where the images are: `data.train` or the data set of the model's name below the root, or the
    root itself; without a root a hub name.
    """
    if data.root is None and data.train is None:
        raise DataError("data: no images are named; give --data FOLDER, or set EDGEQAT_DATA")
    if data.root is None:
        return str(data.train)
    root = Path(data.root).expanduser()
    if not root.is_dir():
        raise DataError(f"data.root: '{data.root}' is no folder; give --data a folder of images")
    named = data.train is not None and (root / data.train).is_dir()
    if data.train and not named and known not in (None, data.train):
        raise DataError(
            f"data.train: there is no '{data.train}' in '{data.root}'; name a folder in it, or "
            f"'{known}', which the model was trained on"
        )
    subfolder = data.train if named else known
    return str(root / subfolder) if subfolder and (root / subfolder).is_dir() else str(root)


def check_recipe(recipe: Recipe) -> None:
    """Refuse what only language models have."""
    scheme = recipe.quant.bits()
    if scheme.kv_bits < FLOAT_BITS:
        raise UsageError(
            f"scheme: {recipe.quant.scheme} quantizes a KV cache and image models have none; write "
            "for example --w4a8 or --w2a32"
        )
    if recipe.quant.kv.llama_cpp or recipe.quant.activation.mode == "q8_0":
        raise UsageError("target: gguf is for language models; leave out --target")
    if recipe.distill.kept is not None:
        raise RecipeError("distill.kept: it is for language models; leave it out")
    if recipe.data.mix:
        raise RecipeError("data.mix: images are not mixed; give one --data")
    if recipe.train.method != "full" or recipe.train.gradient_checkpointing:
        field = "gradient_checkpointing" if recipe.train.method == "full" else "method"
        raise RecipeError(
            f"train.{field}: {getattr(recipe.train, field)} is for language models; leave it out"
        )
    if Guidance(recipe.guide).is_on:
        raise RecipeError("guide: image models have no causal attention; set its weights to 0")
    if recipe.distill.teacher is not None:
        raise RecipeError(
            f"distill.teacher: '{recipe.distill.teacher}': image models are taught by their own "
            "float weights; leave it out"
        )
