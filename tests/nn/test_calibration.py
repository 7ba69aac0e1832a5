"""calibrate() takes what a DataLoader gives, and the same samples however a step is split."""

from __future__ import annotations

import pytest
import tiny
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

import edgeqat
from edgeqat.errors import DataError
from edgeqat.pipeline.preparation import prepared
from edgeqat.pipeline.text_task import load_text
from edgeqat.recipe import files as recipes
from edgeqat.recipe.quant import QuantSection

STATIC = QuantSection.model_validate({"scheme": "w4a8kv4", "activation": {"mode": "static"}})
IDS = tiny.ids(4)


def offsets(model):
    return [
        buffer
        for name, buffer in model.named_buffers()
        if name.endswith("attention_quantizer.key.offset")
    ]


@pytest.mark.parametrize(
    "batches",
    [
        [{"input_ids": IDS, "attention_mask": torch.ones_like(IDS), "labels": IDS}],
        [(IDS, IDS)],
        [[IDS]],
        list(IDS),
        IDS,
        DataLoader(TensorDataset(IDS), batch_size=2),
        DataLoader([{"input_ids": row, "labels": row} for row in IDS], batch_size=2),
    ],
    ids=["mapping", "tuple", "list", "rows", "tensor", "loader", "loader of mappings"],
)
def test_batches_of_many_kinds_give_the_same_offsets(batches):
    expected, model = (edgeqat.prepare(tiny.llama(), "w4a8kv4") for _ in range(2))
    edgeqat.calibrate(expected, [IDS])
    edgeqat.calibrate(model, batches)
    assert offsets(model)
    for found, own in zip(offsets(model), offsets(expected), strict=True):
        assert torch.allclose(found, own, atol=1e-6) and own.abs().sum() > 0


def test_images_with_labels():
    loader = DataLoader(TensorDataset(torch.randn(6, 3, 8, 8), torch.arange(6)), batch_size=3)
    net = edgeqat.prepare(
        nn.Sequential(nn.Conv2d(3, 4, 3), nn.Flatten(), nn.Linear(144, 4)), "w4a4"
    )
    edgeqat.calibrate(net, loader)
    assert net[0].input_quantizer.initialized and net[2].input_quantizer.initialized


@pytest.mark.parametrize(
    ("batches", "words"),
    [([], "there are no batches"), (["some text"], "a batch is a str"), ([None], "a NoneType")],
)
def test_other_batches_are_one_line(batches, words):
    model = edgeqat.prepare(tiny.llama(), quant=STATIC)
    with pytest.raises(DataError, match=words):
        edgeqat.calibrate(model, batches)


def test_a_step_that_is_split_starts_from_the_same_offsets(model_folder, text_file):
    found = []
    for size, accumulation in ((8, 1), (4, 2), (2, 4)):
        values = {
            "model.name": str(model_folder), "data.root": str(text_file), "data.context": 32,
            "quant.scheme": "w4a8kv4", "train.batch_size": size, "train.accumulation": accumulation,
            "quant.activation.mode": "static",
        }  # fmt: skip
        recipe = recipes.load(None, values)
        found.append(prepared(load_text(recipe), recipe, recipe.quant).state_dict())
    for other in found[1:]:
        assert all(torch.equal(tensor, other[name]) for name, tensor in found[0].items())
