"""ResNet (1512.03385) with torchvision's state-dict keys: 18, 34 and 50, and the CIFAR network 20;
`cifar` gives the others a 3x3 stem of stride 1 without pooling.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from edgeqat.vision.batch_norm import normalize
from edgeqat.vision.convolution import Normalized, initialize

_CIFAR_DEPTH = 20
_BLOCKS = {18: (2, 2, 2, 2), 20: (3, 3, 3), 34: (3, 4, 6, 3), 50: (3, 4, 6, 3)}
_BOTTLENECK = 50


def _convolution(inputs: int, outputs: int, kernel: int, stride: int = 1) -> nn.Conv2d:
    return nn.Conv2d(inputs, outputs, kernel, stride, kernel // 2, bias=False)


class _Shortcut(nn.Module):
    """What a block adds to its branch: its input, projected where the shapes differ."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.relu = nn.ReLU(inplace=True)
        self.downsample: nn.Module | None = None
        if stride != 1 or inputs != outputs:
            self.downsample = Normalized(
                _convolution(inputs, outputs, 1, stride), nn.BatchNorm2d(outputs)
            )

    def shortcut(self, input: Tensor) -> Tensor:
        return input if self.downsample is None else self.downsample(input)


class BasicBlock(_Shortcut):
    """Two 3x3 convolutions."""

    expansion = 1

    def __init__(self, inputs: int, width: int, stride: int) -> None:
        super().__init__(inputs, width, stride)
        self.conv1, self.bn1 = _convolution(inputs, width, 3, stride), nn.BatchNorm2d(width)
        self.conv2, self.bn2 = _convolution(width, width, 3), nn.BatchNorm2d(width)

    def forward(self, input: Tensor) -> Tensor:
        hidden = normalize(self.bn1, self.relu, self.conv1(input))
        branch = normalize(self.bn2, None, self.conv2(hidden))
        return self.relu(branch + self.shortcut(input))


class Bottleneck(_Shortcut):
    """1x1, 3x3 and 1x1 convolutions; the stride sits in the 3x3, as in torchvision."""

    expansion = 4

    def __init__(self, inputs: int, width: int, stride: int) -> None:
        outputs = width * self.expansion
        super().__init__(inputs, outputs, stride)
        self.conv1, self.bn1 = _convolution(inputs, width, 1), nn.BatchNorm2d(width)
        self.conv2, self.bn2 = _convolution(width, width, 3, stride), nn.BatchNorm2d(width)
        self.conv3, self.bn3 = _convolution(width, outputs, 1), nn.BatchNorm2d(outputs)

    def forward(self, input: Tensor) -> Tensor:
        hidden = normalize(self.bn1, self.relu, self.conv1(input))
        hidden = normalize(self.bn2, self.relu, self.conv2(hidden))
        branch = normalize(self.bn3, None, self.conv3(hidden))
        return self.relu(branch + self.shortcut(input))


class ResNet(nn.Module):
    """Images (B, 3, H, W) to logits (B, classes)."""

    def __init__(self, depth: int = 18, classes: int = 1000, cifar: bool = False) -> None:
        super().__init__()
        kind = Bottleneck if depth == _BOTTLENECK else BasicBlock
        inputs = width = 16 if depth == _CIFAR_DEPTH else 64
        small = cifar or depth == _CIFAR_DEPTH
        self.conv1 = _convolution(3, inputs, 3) if small else _convolution(3, inputs, 7, 2)
        self.bn1 = nn.BatchNorm2d(inputs)
        self.relu = nn.ReLU(inplace=True)
        self.maxpool: nn.Module = nn.Identity() if small else nn.MaxPool2d(3, 2, 1)
        self.stages = len(_BLOCKS[depth])
        for stage, count in enumerate(_BLOCKS[depth]):
            blocks: list[nn.Module] = []
            for block in range(count):
                blocks.append(kind(inputs, width, 2 if stage and block == 0 else 1))
                inputs = width * kind.expansion
            setattr(self, f"layer{stage + 1}", nn.Sequential(*blocks))
            width *= 2
        self.fc = nn.Linear(inputs, classes)
        initialize(self)

    def forward(self, images: Tensor) -> Tensor:
        hidden = self.maxpool(normalize(self.bn1, self.relu, self.conv1(images)))
        for stage in range(self.stages):
            hidden = getattr(self, f"layer{stage + 1}")(hidden)
        return self.fc(torch.mean(hidden, (2, 3)))
