"""Seeds that are put together from numbers."""

import torch

from edgeqat.seeds import mixed


def test_every_bit_and_the_order_of_the_numbers_matter_to_torch():
    numbers = [(0, 0), (0, 1), (1, 0), (1 << 16, 0), (1 << 31, 0), (0, 1 << 31), (1, 1 << 16)]
    generators = (torch.Generator().manual_seed(mixed(*each)) for each in numbers)
    drawn = {tuple(torch.randperm(50, generator=generator).tolist()) for generator in generators}
    assert len(drawn) == len(numbers)


def test_the_same_numbers_give_the_same_seed():
    assert mixed(3, 1, 4) == mixed(3, 1, 4) != mixed(3, 4, 1)
