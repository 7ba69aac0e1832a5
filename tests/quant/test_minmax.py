"""Min-max scales: round-to-nearest and LLM-QAT in the same tool."""

from __future__ import annotations

import pytest
import tiny
import torch

import edgeqat
from edgeqat.errors import RecipeError
from edgeqat.hf import packed_folder
from edgeqat.nn import convert
from edgeqat.quant import functional
from edgeqat.quant.dynamic import CacheQuantizer, DynamicQuantizer, MinMaxQuantizer
from edgeqat.quant.lsq import WeightQuantizer
from edgeqat.quant.minmax import MinMaxWeightQuantizer
from edgeqat.recipe import files as recipes
from edgeqat.recipe.quant import QuantSection

SECTION = {
    "scheme": "w4a4kv4",
    "weight": {"scale": "minmax", "granularity": "per_channel"},
    "activation": {"mode": "minmax", "rotate": []},
    "kv": {"minmax": True, "rotate_keys": False, "key_offset": False, "sink_tokens": 0},
}


def section(**changes):
    return QuantSection.model_validate({**SECTION, **changes})


def test_two_rows_of_three_by_hand():
    quantizer = MinMaxWeightQuantizer((2, 3), 4, "per_channel", None)
    found = quantizer(torch.tensor([[7.0, 0.4, -3.6], [-14.0, 2.9, 1.1]]))
    assert found.tolist() == [[7.0, 0.0, -4.0], [-14.0, 2.0, 2.0]]


@pytest.mark.parametrize("granularity", ["per_tensor", "per_channel", "per_group"])
def test_codes_are_those_of_the_forward_pass(granularity):
    quantizer = MinMaxWeightQuantizer((6, 80), 3, granularity, 32)
    weight = torch.randn(6, 80)
    codes, scale = quantizer.codes(weight)
    grouped = functional.to_groups(codes.float(), quantizer.group_size)
    values = functional.dequantize(grouped, scale.float().unsqueeze(-1), quantizer.grid)
    assert torch.equal(functional.from_groups(values, 80), quantizer(weight))


def test_the_scale_follows_the_weight_and_is_not_trained():
    quantizer = MinMaxWeightQuantizer((4, 32), 4, "per_channel", None)
    weight = torch.randn(4, 32, requires_grad=True)
    assert torch.allclose(quantizer(weight * 2), quantizer(weight) * 2, rtol=1e-3, atol=1e-6)
    quantizer(weight).sum().backward()
    assert torch.equal(weight.grad, torch.ones_like(weight))  # nothing is clipped
    assert not [p for p in quantizer.parameters() if p.requires_grad]


def test_rows_of_an_embedding_are_quantized_alone():
    quantizer = MinMaxWeightQuantizer((5, 16), 8, "per_channel", None)
    weight, rows = torch.randn(5, 16), torch.tensor([3, 0, 3])
    assert torch.equal(quantizer(weight[rows], rows), quantizer(weight)[rows])


def test_nothing_is_clipped_at_few_bits():
    values = torch.randn(2, 3, 8, 64)
    assert MinMaxQuantizer(8)(values).equal(DynamicQuantizer(8)(values))
    assert not MinMaxQuantizer(4)(values).equal(DynamicQuantizer(4)(values))
    top = MinMaxQuantizer(4)(values).abs().amax(-1)
    assert torch.allclose(top, values.abs().amax(-1), rtol=1e-5)
    none = torch.zeros(1, 8, dtype=torch.bool)
    assert torch.allclose(
        CacheQuantizer(4, 64, minmax=True)(values, none).abs().amax(-1),
        values.abs().amax(-1), rtol=1e-3,
    )  # fmt: skip


def test_a_model_trains_and_loads_back(tmp_path):
    model = edgeqat.prepare(tiny.llama(), quant=section())
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-3)
    losses = []
    for _ in range(6):
        loss = model(tiny.ids(), labels=tiny.ids()).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    assert losses[-1] < losses[0]
    with torch.no_grad():
        trained = model.eval()(tiny.ids()).logits
        convert.convert(model)
        assert torch.equal(model(tiny.ids()).logits, trained)
        (tmp_path / "packed").mkdir()
        packed_folder.write(tmp_path / "packed", model, section(), tiny.tokenizer())
        assert torch.equal(edgeqat.load(tmp_path / "packed")(tiny.ids()).logits, trained)


def test_the_ptq_row_stays_the_one_of_every_scheme():
    plain = edgeqat.prepare(tiny.llama(), quant=section().ptq_only())
    kinds = {type(m) for m in plain.modules() if isinstance(m, WeightQuantizer)}
    assert kinds == {WeightQuantizer}


def test_low_rank_training_is_refused():
    values = {"quant": section().model_dump(), "train": {"method": "lowrank"}}
    with pytest.raises(RecipeError, match=r"train.method: 'lowrank' needs .*scale 'learned'"):
        recipes.validate(values)
