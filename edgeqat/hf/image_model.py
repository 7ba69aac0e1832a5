"""Where float image classifiers come from: names of vision/zoo with weights of torchvision's keys,
folders that `edgeqat train` wrote, and image models of transformers.

`ImageModel` carries what a folder records besides weights: how images are made into inputs and what
the classes are called.
"""

from __future__ import annotations

import json
import math
import re
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, cast

import torch
from torch import nn
from transformers import AutoConfig, AutoModelForImageClassification, ViTConfig
from transformers.models.auto.modeling_auto import MODEL_FOR_IMAGE_CLASSIFICATION_MAPPING_NAMES

from edgeqat import checkpoint
from edgeqat.checkpoint import IMAGE
from edgeqat.data import cifar, images
from edgeqat.data.classes import are_named, unnamed
from edgeqat.errors import FormatError, ModelError
from edgeqat.hf import float_model
from edgeqat.nn.finite import check_finite
from edgeqat.vision import zoo

# ViT-Ti of DeiT (2012.12877) on patches of an eighth of CIFAR's side, a fourteenth of ImageNet's
VIT = re.compile(r"vit-tiny-(?P<data>cifar100|cifar10|imagenet)")
_VIT: dict[str, Any] = {"hidden_size": 192, "num_hidden_layers": 12, "num_attention_heads": 3,
        "intermediate_size": 768}  # fmt: skip
_SIZE, _LARGE_SIZE = 32, 224
_UNKNOWN = "which is not known here; choose a model of RGB images scaled by 1/255"


@dataclass(frozen=True)
class ImageModel:
    """A classifier: `network` is its name in vision/zoo, None for one of transformers."""

    network: str | None
    classes: int
    size: int
    mean: tuple[float, ...]
    deviation: tuple[float, ...]
    data: str | None = None  # the data set its name speaks of
    config: dict[str, Any] | None = None  # transformers'
    labels: tuple[str, ...] = ()  # names of the classes; none: not known

    def build(self) -> nn.Module:
        """The classifier with random weights."""
        if self.network is not None:
            return zoo.build(self.network, self.classes)
        assert self.config is not None
        values = {key: value for key, value in self.config.items() if key != "model_type"}
        config = AutoConfig.for_model(self.config["model_type"], **values)
        return AutoModelForImageClassification.from_config(config)

    def sized(self, size: int | None) -> ImageModel:
        """The same for images of another size; None: as it is."""
        if size is None:
            return self
        config = self.config
        if config is not None and "image_size" in config:
            config = {**config, "image_size": size}
        return replace(self, size=size, config=config)

    def normalizer(self) -> images.Normalizer:
        """What makes pixels into inputs."""
        return images.Normalizer(self.mean, self.deviation)

    def to_config(self) -> dict[str, Any]:
        """config.json of a folder."""
        record = {
            "network": self.network,
            "classes": self.classes,
            "size": self.size,
            "mean": list(self.mean),
            "deviation": list(self.deviation),
            "data": self.data,
            "labels": list(self.labels or unnamed(self.classes)),
        }
        base = self.config or {
            "model_type": float_model.IMAGE_TYPE,
            "architectures": [self.network],
        }
        return {**base, IMAGE: record}


def from_config(config: dict[str, Any]) -> ImageModel:
    """The classifier that a config.json of ours describes."""
    try:
        made = ImageModel(**config[IMAGE])
        made = replace(
            made,
            mean=tuple(made.mean),
            deviation=tuple(made.deviation),
            labels=tuple(str(name) for name in config[IMAGE]["labels"]),
        )
        if made.network is None:
            left_out = (IMAGE, "quantization_config", "architectures", "dtype")
            source_config = {key: value for key, value in config.items() if key not in left_out}
            return replace(made, config=source_config)
        if zoo.parse(made.network) is None:
            raise KeyError(made.network)
        return made
    except (KeyError, TypeError, ValueError):
        raise FormatError(
            f"{checkpoint.CONFIG}: its part '{IMAGE}' is not readable; copy the folder again"
        ) from None


def is_image_model(name: str) -> bool:
    """Whether a model name stands for an image classifier: a name of ours, a folder of ours or one
    of transformers.
    """
    if (zoo.parse(name) is not None or VIT.fullmatch(name)) and not Path(name).is_dir():
        return True
    config = _config(name)
    kinds = MODEL_FOR_IMAGE_CLASSIFICATION_MAPPING_NAMES
    named = [str(kind) for kind in config.get("architectures") or ()]
    return IMAGE in config or (
        config.get("model_type") in kinds and any("ImageClassification" in kind for kind in named)
    )


def load(name: str, weights: str | None = None) -> tuple[nn.Module, ImageModel]:
    """A float classifier and what describes it; `weights` are a safetensors file."""
    config = _config(name)
    if IMAGE in config:
        if "quantization_config" in config:
            raise ModelError(f"model: '{name}' is quantized already; start from its float model")
        kind = from_config(config)
        weights_path = str(Path(name).expanduser() / checkpoint.WEIGHTS)
        return _filled(kind, weights or weights_path), kind
    if config:
        return _of_transformers(name, weights)
    if weights is None:
        raise ModelError(
            f"model.weights: '{name}' is an architecture without weights; give --weights "
            "FILE.safetensors, or train some (`edgeqat train`, see `edgeqat recipes`)"
        )
    kind = named(name, _classes(weights))
    return _filled(kind, weights), replace(kind, labels=_labels(weights, kind))


def named(name: str, classes: int | None = None) -> ImageModel:
    """What a name of vision/zoo or `vit-tiny-DATA` describes, without names of the classes; an
    unknown one suggests another.
    """
    match, architecture = VIT.fullmatch(name), zoo.parse(name)
    if match is None and architecture is None:
        zoo.build(name)
    data = match["data"] if match else cast(zoo.Architecture, architecture).data
    small = data != "imagenet"
    count, size = classes or zoo.CLASSES[data], _SIZE if small else _LARGE_SIZE
    config = None
    if match:
        patch: dict[str, Any] = {"image_size": size, "patch_size": 4 if small else 16}
        vit = ViTConfig(num_labels=count, **patch, **_VIT)  # type: ignore[call-arg]
        config = _plain(json.loads(vit.to_json_string(use_diff=False)))
    return ImageModel(
        None if match else name,
        count,
        size,
        images.MEAN if small else images.IMAGENET_MEAN,
        images.DEVIATION if small else images.IMAGENET_DEVIATION,
        data,
        config,
    )


def _filled(kind: ImageModel, weights: str) -> nn.Module:
    path = float_model.weights_file(weights)
    model = kind.build()
    try:
        model.load_state_dict(checkpoint.read_tensors(path))
    except (FormatError, RuntimeError) as error:
        reason = " ".join(str(error).split())[:160]
        raise ModelError(
            f"model.weights: '{weights}' does not fit {kind.network or 'the model'} ({reason})"
        ) from None
    check_finite(model, weights)
    return model.eval()


def _classes(weights: str) -> int | None:
    """Rows of the classifier of a weights file: the classes it was trained for."""
    header = checkpoint.read_header(float_model.weights_file(weights))
    matrices = {name: entry["shape"] for name, entry in header.items() if len(entry["shape"]) == 2}
    last = matrices.get("classifier.weight")  # a transformer has more than one
    shapes = list(matrices.values()) if last is None else [last]
    return shapes[0][0] if len(shapes) == 1 else None


def _labels(weights: str, kind: ImageModel) -> tuple[str, ...]:
    """Names of the classes of a weights file: those in config.json of the folder of `edgeqat train`
    that it lies in, else the data set's.
    """
    beside = _config(str(Path(weights).expanduser().parent)).get(IMAGE)
    if isinstance(beside, dict) and beside.get("network") == kind.network:
        labels = beside.get("labels")
        if isinstance(labels, list) and len(labels) == kind.classes:
            return tuple(str(name) for name in labels)
    public = cifar.NAMES.get(kind.data or "", ())
    return public if len(public) == kind.classes else ()


def _of_transformers(name: str, weights: str | None) -> tuple[nn.Module, ImageModel]:
    place = float_model.locate(name)
    loaded: Any
    try:
        loaded = AutoModelForImageClassification.from_pretrained(
            place, dtype=torch.float32, use_safetensors=True, output_loading_info=True
        )
    except Exception as error:
        reason = " ".join(str(error).split())[:160]
        raise ModelError(f"model: '{name}' cannot be loaded ({reason}); check its files") from error
    model, info = loaded
    if info["missing_keys"]:
        missing = sorted(info["missing_keys"])[0]
        raise ModelError(f"model: '{name}' holds no weights for {missing}; copy the whole model")
    if weights is not None:
        float_model.replace_weights(model, weights)
    check_finite(model, weights or name)
    config = _plain(json.loads(model.config.to_json_string(use_diff=False)))
    size, mean, deviation = _preprocessing(Path(place), config)
    count = model.config.num_labels
    names = tuple(str(model.config.id2label.get(number, number)) for number in range(count))
    return model.eval(), ImageModel(
        None, count, size, mean, deviation, None, config, names if are_named(names) else ()
    )


def _plain(config: dict[str, Any]) -> dict[str, Any]:
    """transformers' configuration without what a loaded model adds to it."""
    added = ("_name_or_path", "_attn_implementation", "architectures", "dtype")
    return {key: value for key, value in config.items() if key not in added}


def _preprocessing(
    folder: Path, config: dict[str, Any]
) -> tuple[int, tuple[float, ...], tuple[float, ...]]:
    """Side, mean and deviation that a model's preprocessor_config.json names, else ImageNet's."""
    values: dict[str, Any] = {}
    file = folder / "preprocessor_config.json"
    if file.is_file():
        try:
            values = dict(json.loads(file.read_text(encoding="utf-8")))
        except (OSError, ValueError, TypeError):
            raise ModelError(f"model: '{file}' is not readable; copy the whole model") from None
    size: Any = values.get("crop_size") or values.get("size") or config.get("image_size")
    if isinstance(size, dict):
        size = size.get("height") or size.get("shortest_edge")
    plain = {"do_flip_channel_order": False, "do_rescale": True, "rescale_offset": False}
    for field, expected in plain.items():
        if values.get(field) not in (None, expected):
            raise ModelError(f"model: {field} of '{file}' is {values[field]}, {_UNKNOWN}")
    if not math.isclose(values.get("rescale_factor") or 1 / 255, 1 / 255, rel_tol=1e-3):
        raise ModelError(f"model: rescale_factor of '{file}' is no 1/255, {_UNKNOWN}")
    if values.get("do_normalize") is False:
        return int(size or _LARGE_SIZE), (0.0,) * 3, (1.0,) * 3
    mean = tuple(values.get("image_mean") or images.IMAGENET_MEAN)
    deviation = tuple(values.get("image_std") or images.IMAGENET_DEVIATION)
    if values.get("include_top"):  # EfficientNet's divides twice
        deviation = tuple(value**2 for value in deviation)
    return int(size or _LARGE_SIZE), mean, deviation


def _config(name: str) -> dict[str, Any]:
    """config.json of a local folder; empty without one."""
    file = Path(name).expanduser() / checkpoint.CONFIG
    try:
        values = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return values if isinstance(values, dict) else {}
