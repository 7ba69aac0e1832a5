"""eval/engine_agreement.py: the numbers it prints, by hand."""

from __future__ import annotations

import math

import torch
from scripts import loaded, needs_scripts

pytestmark = needs_scripts


def test_pairs_are_compared_position_by_position():
    ids = torch.tensor([[0, 1, 0]])
    exact = torch.tensor([[[0.0, 2.0], [1.0, 0.0], [0.0, 0.01]]])
    turned = exact.clone()
    turned[0, 2] = torch.tensor([0.01, 0.0])  # the tie goes the other way
    ways = {"native": turned, "packed": exact, "fake-quant": exact}
    with loaded("engine_agreement") as script:
        first, second, third = script.table(ways, ids, tie=0.05).splitlines()[2:]
    expected = math.exp((math.log1p(math.exp(-2)) + math.log1p(math.exp(-1))) / 2)
    cells = [cell.strip() for cell in first.split("|")[1:-1]]
    assert cells[0] == "native, packed" and cells[2:5] == ["66.67%", "66.7%", "100.00%"]
    assert cells[5] == f"{expected:.3f}, {expected:.3f} (+0.000%)"
    assert second.split("|")[3:] == first.split("|")[3:]
    assert "| 1.000000 | 100.00% |" in third
