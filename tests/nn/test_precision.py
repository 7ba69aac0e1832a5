"""Where bf16 is taken."""

from __future__ import annotations

import pytest
import tiny
import torch

from edgeqat.nn import precision


@pytest.mark.parametrize(("wanted", "expected"), [(True, True), (False, False), (None, False)])
def test_a_small_model_takes_bf16_only_where_it_is_asked_for(wanted, expected, monkeypatch):
    monkeypatch.setattr(precision, "has_bf16_products", lambda _: True)
    assert precision.uses_bf16(wanted, tiny.llama()) is expected


def test_a_large_model_takes_it_where_the_trainers_device_multiplies_in_it(monkeypatch):
    monkeypatch.setattr(precision, "_WORTH", 1000)
    monkeypatch.setattr(precision, "has_bf16_products", lambda device: device == "cuda")
    assert not precision.uses_bf16(None, tiny.llama(), "cpu")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert precision.uses_bf16(None, tiny.llama())  # it is on the CPU until the trainer has it
