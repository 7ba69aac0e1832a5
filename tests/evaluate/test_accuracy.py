"""Accuracy of classifiers by hand, and what is recovered of it."""

import pytest
import torch
from torch import nn

from edgeqat.data.images import Images, Normalizer
from edgeqat.evaluate.accuracy import accuracy, recovered, same_top


class Reader(nn.Module):
    """Logits of class c: how close the first pixel is to c."""

    def __init__(self, classes, shift=0.0):
        super().__init__()
        self.levels = nn.Parameter(torch.arange(float(classes)) + shift)

    def forward(self, images):
        return -(images[:, 0, 0, :1] - self.levels).abs()


PLAIN = Normalizer((0.0, 0.0, 0.0), (1 / 255,) * 3)  # pixels as they are


def images(values, labels):
    pixels = torch.zeros(len(values), 3, 2, 2, dtype=torch.uint8)
    pixels[:, 0, 0, 0] = torch.tensor(values)
    return Images(pixels, torch.tensor(labels), [])


def test_top_1_and_top_5():
    model = Reader(10).train()
    found = accuracy(model, images([3, 3, 3, 9], [3, 4, 9, 9]), PLAIN)
    assert found == {"top1": 50.0, "top5": 75.0}
    assert model.training


def test_more_images_than_one_pass_takes():
    data = images([1] * 700, [1] * 350 + [2] * 350)
    assert accuracy(Reader(3), data, PLAIN) == {"top1": 50.0, "top5": 100.0}


def test_how_often_two_models_agree():
    data = images([0, 1, 2, 3], [0] * 4)
    assert same_top(Reader(10), Reader(10), data, PLAIN) == 100
    assert same_top(Reader(10), Reader(10, shift=1), data, PLAIN) == 25  # both say 0 at 0


def test_recovered():
    assert recovered(70, 20, 60) == pytest.approx(0.8)
    assert recovered(70, 70, 60) is None
