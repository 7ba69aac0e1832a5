"""EfficientNet-B0 (1905.11946) with torchvision's state-dict keys; `cifar` lowers the strides for
32x32 images as MobileNetV2's does.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from edgeqat.vision.convolution import ConvNormActivation, initialize

# expansion, kernel, stride, channels, blocks
_STAGES = (
    (1, 3, 1, 16, 1), (6, 3, 2, 24, 2), (6, 5, 2, 40, 2), (6, 3, 2, 80, 3),
    (6, 5, 1, 112, 3), (6, 5, 2, 192, 4), (6, 3, 1, 320, 1),
)  # fmt: skip
_STEM, _LAST = 32, 1280
_DROPPED_PATHS = 0.2


class SqueezeExcitation(nn.Module):
    """Channel weights from the image's mean."""

    def __init__(self, channels: int, squeezed: int) -> None:
        super().__init__()
        self.fc1 = nn.Conv2d(channels, squeezed, 1)
        self.fc2 = nn.Conv2d(squeezed, channels, 1)

    def forward(self, input: Tensor) -> Tensor:
        mean = input.mean((2, 3), keepdim=True)
        return input * torch.sigmoid(self.fc2(nn.functional.silu(self.fc1(mean))))


class MBConv(nn.Module):
    """Inverted residual with squeeze-excitation; in training the branch of an image is dropped with
    probability `drop_prob`.
    """

    def __init__(
        self, inputs: int, outputs: int, expansion: int, kernel: int, stride: int, drop_prob: float
    ) -> None:
        super().__init__()
        hidden = inputs * expansion
        layers: list[nn.Module] = []
        if expansion != 1:
            layers.append(ConvNormActivation(inputs, hidden, 1, activation=nn.SiLU))
        layers += [
            ConvNormActivation(hidden, hidden, kernel, stride, hidden, nn.SiLU),
            SqueezeExcitation(hidden, max(1, inputs // 4)),
            ConvNormActivation(hidden, outputs, 1, activation=None),
        ]
        self.block = nn.Sequential(*layers)
        self.shortcut = stride == 1 and inputs == outputs
        self.drop_prob = drop_prob

    def forward(self, input: Tensor) -> Tensor:
        output = self.block(input)
        if not self.shortcut:
            return output
        if self.training and self.drop_prob:
            kept = torch.rand(len(input), 1, 1, 1, device=input.device) >= self.drop_prob
            output = output * kept / (1 - self.drop_prob)
        return input + output


class EfficientNet(nn.Module):
    """Images (B, 3, H, W) to logits (B, classes)."""

    def __init__(self, classes: int = 1000, cifar: bool = False) -> None:
        super().__init__()
        features: list[nn.Module] = [
            ConvNormActivation(3, _STEM, stride=1 if cifar else 2, activation=nn.SiLU)
        ]
        inputs, done = _STEM, 0
        total = sum(blocks for *_, blocks in _STAGES)
        for stage, (expansion, kernel, stride, outputs, blocks) in enumerate(_STAGES):
            layers = []
            for block in range(blocks):
                first = 1 if cifar and stage == 1 else stride
                step, dropped = first if block == 0 else 1, _DROPPED_PATHS * done / total
                layers.append(MBConv(inputs, outputs, expansion, kernel, step, dropped))
                inputs, done = outputs, done + 1
            features.append(nn.Sequential(*layers))
        features.append(ConvNormActivation(inputs, _LAST, 1, activation=nn.SiLU))
        self.features = nn.Sequential(*features)
        self.classifier = nn.Sequential(nn.Dropout(0.2), nn.Linear(_LAST, classes))
        initialize(self)

    def forward(self, images: Tensor) -> Tensor:
        return self.classifier(self.features(images).mean((2, 3)))
