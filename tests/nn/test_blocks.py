"""Blocks found by rule, and their outputs."""

import pytest
import tiny
import torch
from transformers import AutoModelForImageClassification, ResNetConfig

import edgeqat
from edgeqat.errors import RecipeError
from edgeqat.nn.blocks import block_names, tapped
from edgeqat.vision.zoo import build


@pytest.mark.parametrize(
    "name, count, last",
    [
        ("mobilenetv2-cifar10", 17, "features.17"),
        ("resnet18-cifar10", 8, "layer4.1"),
        ("resnet50", 16, "layer4.2"),
        ("efficientnet-b0-cifar10", 16, "features.7.0"),
    ],
)
def test_blocks_of_image_classifiers(name, count, last):
    with torch.device("meta"):
        found = block_names(build(name))
    assert len(found) == count and found[-1] == last


def test_blocks_of_a_language_model_are_its_layers_quantized_or_not():
    model = tiny.llama()
    names = block_names(model)
    assert names == [f"model.layers.{i}" for i in range(len(model.model.layers))]
    assert block_names(edgeqat.prepare(model, "w4a8kv4")) == names
    assert block_names(model, "model.layers.1") == ["model.layers.1"]


def test_a_rule_that_matches_nothing_is_refused():
    with pytest.raises(RecipeError, match=r"correct.blocks: 'stage\*' matches no block"):
        block_names(tiny.llama(), "stage*")


def test_taps_hold_the_outputs_of_the_last_pass():
    model = tiny.llama().eval()
    ids = torch.arange(6)[None]
    expected = model(ids, output_hidden_states=True).hidden_states
    with tapped(model, block_names(model)) as outputs:
        model(ids + 1)
        model(ids)
        assert len(outputs) == len(model.model.layers)
        assert torch.equal(outputs[0], expected[1])
    model(ids)
    assert len(outputs) == len(model.model.layers)


def test_blocks_are_not_the_stages_that_hold_them():
    config = ResNetConfig(
        depths=[2, 2], hidden_sizes=[8, 16], embedding_size=8, layer_type="basic", num_labels=3
    )
    with torch.device("meta"):
        found = block_names(AutoModelForImageClassification.from_config(config))
    stages = "resnet.encoder.stages"
    assert found == [f"{stages}.{i}.layers.{j}" for i in (0, 1) for j in (0, 1)]
