"""MobileNetV2 (1801.04381) with torchvision's state-dict keys; `cifar` lowers the strides for
32x32 images: stem 1, stages 1 1 2 2 1 2 1.
"""

from __future__ import annotations

from torch import Tensor, nn

from edgeqat.vision.convolution import ConvNormActivation, Normalized, divisible, initialize

# expansion, channels, blocks, stride
_STAGES = (
    (1, 16, 1, 1), (6, 24, 2, 2), (6, 32, 3, 2), (6, 64, 4, 2),
    (6, 96, 3, 1), (6, 160, 3, 2), (6, 320, 1, 1),
)  # fmt: skip
_LAST = 1280


class InvertedResidual(nn.Module):
    """Expansion, depthwise convolution, linear projection; a shortcut where shapes agree."""

    def __init__(self, inputs: int, outputs: int, stride: int, expansion: int) -> None:
        super().__init__()
        hidden = inputs * expansion
        layers: list[nn.Module] = []
        if expansion != 1:
            layers.append(ConvNormActivation(inputs, hidden, kernel=1))
        layers += [
            ConvNormActivation(hidden, hidden, stride=stride, groups=hidden),
            nn.Conv2d(hidden, outputs, 1, bias=False),
            nn.BatchNorm2d(outputs),
        ]
        self.conv = Normalized(*layers)
        self.shortcut = stride == 1 and inputs == outputs

    def forward(self, input: Tensor) -> Tensor:
        output = self.conv(input)
        return input + output if self.shortcut else output


class MobileNetV2(nn.Module):
    """Images (B, 3, H, W) to logits (B, classes)."""

    def __init__(self, classes: int = 1000, width: float = 1.0, cifar: bool = False) -> None:
        super().__init__()
        inputs = divisible(32 * width)
        features: list[nn.Module] = [ConvNormActivation(3, inputs, stride=1 if cifar else 2)]
        for stage, (expansion, channels, blocks, stride) in enumerate(_STAGES):
            outputs = divisible(channels * width)
            for block in range(blocks):
                first = 1 if cifar and stage == 1 else stride
                step = first if block == 0 else 1
                features.append(InvertedResidual(inputs, outputs, step, expansion))
                inputs = outputs
        last = divisible(_LAST * max(1.0, width))
        features.append(ConvNormActivation(inputs, last, kernel=1))
        self.features = nn.Sequential(*features)
        self.classifier = nn.Sequential(nn.Dropout(0.2), nn.Linear(last, classes))
        initialize(self)

    def forward(self, images: Tensor) -> Tensor:
        return self.classifier(self.features(images).mean((2, 3)))
