"""KL to the float model."""

from __future__ import annotations

import pytest
import tiny
import torch
from torch.nn import functional as F

from edgeqat.data.text import Blocks
from edgeqat.evaluate.divergence import divergence


def test_it_is_the_plain_formula_and_zero_for_the_model_itself():
    model, floating, ids = tiny.llama(1).train(), tiny.llama(), tiny.ids()
    with torch.no_grad():
        one, other = (m.eval()(input_ids=ids).logits.log_softmax(-1) for m in (model, floating))
    expected = F.kl_div(one, other, log_target=True, reduction="sum") / ids.numel()
    found = divergence(model.train(), floating, Blocks(ids))
    assert found == pytest.approx(expected.item(), rel=1e-4) and found > 0.01
    assert model.training
    assert divergence(floating, floating, Blocks(ids)) == pytest.approx(0, abs=1e-6)
