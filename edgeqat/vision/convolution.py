"""Convolution, batch norm and activation in one module, with torchvision's keys (0 and 1)."""

from __future__ import annotations

from torch import Tensor, nn

from edgeqat.vision.activation import ReLU6
from edgeqat.vision.batch_norm import normalize


def divisible(value: float, divisor: int = 8) -> int:
    """`value` rounded to a multiple of `divisor`, never more than a tenth below it (MobileNet)."""
    rounded = max(divisor, int(value + divisor / 2) // divisor * divisor)
    return rounded + divisor if rounded < 0.9 * value else rounded


class Normalized(nn.Sequential):
    """Layers, the last of them a batch norm."""

    def forward(self, input: Tensor) -> Tensor:
        *layers, norm = self
        for layer in layers:
            input = layer(input)
        return normalize(norm, None, input)


class ConvNormActivation(nn.Sequential):
    """Conv2d without bias, BatchNorm2d and an activation (None: none)."""

    def __init__(
        self,
        inputs: int,
        outputs: int,
        kernel: int = 3,
        stride: int = 1,
        groups: int = 1,
        activation: type[nn.Module] | None = ReLU6,
        epsilon: float = 1e-5,
    ) -> None:
        layers: list[nn.Module] = [
            nn.Conv2d(inputs, outputs, kernel, stride, kernel // 2, groups=groups, bias=False),
            nn.BatchNorm2d(outputs, eps=epsilon),
        ]
        if activation is not None:
            layers.append(activation(inplace=True))
        super().__init__(*layers)

    def forward(self, input: Tensor) -> Tensor:
        convolution, norm, *activation = self
        return normalize(norm, activation[0] if activation else None, convolution(input))


def initialize(model: nn.Module) -> None:
    """He initialisation of convolutions, ones and zeros of norms, small random classifiers."""
    for module in model.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, mode="fan_out")
            if module.bias is not None:
                nn.init.zeros_(module.bias)
        elif isinstance(module, nn.BatchNorm2d):
            nn.init.ones_(module.weight)
            nn.init.zeros_(module.bias)
        elif isinstance(module, nn.Linear):
            nn.init.normal_(module.weight, 0, 0.01)
            nn.init.zeros_(module.bias)
