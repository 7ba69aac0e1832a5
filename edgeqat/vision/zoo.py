"""Float image classifiers by name: `resnet18`, `mobilenetv2-x0.5`, `efficientnet-b0`, ... with
`-cifar100`, `-cifar10` or `-imagenet` for the data they are shaped for.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, NamedTuple

from edgeqat.errors import UsageError, nearest

if TYPE_CHECKING:
    from torch import nn  # names are parsed without torch

CLASSES = {"cifar10": 10, "cifar100": 100, "imagenet": 1000}
_NETWORKS = ("resnet18", "resnet20", "resnet34", "resnet50", "mobilenetv2", "efficientnet-b0")
_NAME = re.compile(
    r"(?P<network>.+?)(?:-x(?P<width>\d+(?:\.\d+)?))?(?:-(?P<data>cifar100|cifar10|imagenet))?"
)
_PAPER_WIDTH = 0.5  # MobileNetV2 on CIFAR in QuaRC, section 5


class Architecture(NamedTuple):
    """A parsed model name."""

    network: str
    width: float
    data: str


def parse(name: str) -> Architecture | None:
    """The architecture a name stands for; None when it is no image classifier of ours."""
    match = _NAME.fullmatch(name)
    if match is None or match["network"] not in _NETWORKS:
        return None
    data = match["data"] or "imagenet"
    default = _PAPER_WIDTH if data != "imagenet" else 1.0
    return Architecture(match["network"], float(match["width"] or default), data)


def build(name: str, classes: int | None = None) -> nn.Module:
    """A float model with random weights; an unknown name suggests the nearest."""
    architecture = parse(name)
    if architecture is None:
        raise UsageError(f"model: '{name}' is not known; {nearest(name, list(_NETWORKS))}")
    classes, cifar = classes or CLASSES[architecture.data], architecture.data != "imagenet"
    if architecture.network == "mobilenetv2":
        from edgeqat.vision.mobilenetv2 import MobileNetV2

        return MobileNetV2(classes, architecture.width, cifar)
    if architecture.network == "efficientnet-b0":
        from edgeqat.vision.efficientnet import EfficientNet

        return EfficientNet(classes, cifar)
    from edgeqat.vision.resnet import ResNet

    return ResNet(int(architecture.network.removeprefix("resnet")), classes, cifar)
