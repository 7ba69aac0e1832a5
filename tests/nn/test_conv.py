"""Quantized convolutions: training equals packed, gradients, batch norm, what stays float."""

import copy

import pytest
import torch
from torch import nn

import edgeqat
from edgeqat.errors import ModelError
from edgeqat.nn import convert
from edgeqat.nn.calibration import calibrate
from edgeqat.nn.conv import PackedConv2d, QuantConv2d
from edgeqat.nn.decision import edges, rule
from edgeqat.recipe.quant import QuantSection, WeightSection
from edgeqat.vision.zoo import build


class Net(nn.Module):
    """A stem, a depthwise and a pointwise convolution with batch norms, and a classifier."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.stem = nn.Conv2d(3, 8, 3, stride=2, padding=1, bias=False)
        self.norm = nn.BatchNorm2d(8)
        self.depthwise = nn.Conv2d(8, 8, 3, padding=(1, 0), dilation=(1, 2), groups=8)
        self.pointwise = nn.Conv2d(8, 20, 1)
        self.last = nn.BatchNorm2d(20)
        self.fc = nn.Linear(20, 5)
        for norm in (self.norm, self.last):
            nn.init.normal_(norm.weight)  # some gammas are negative
            nn.init.normal_(norm.bias)

    def forward(self, images):
        hidden = self.depthwise(torch.relu(self.norm(self.stem(images))))
        return self.fc(torch.relu(self.last(self.pointwise(hidden))).mean((2, 3)))


def trained(scheme, **changes):
    """A prepared model after a few batches of statistics and calibration, in eval mode."""
    quant = QuantSection(scheme=scheme, **changes)
    model = convert.prepare(Net(), quant)
    images = torch.randn(16, 3, 12, 12)
    calibrate(model, iter([images]))
    model.train()
    for _ in range(3):
        model(torch.randn(16, 3, 12, 12))
    return model.eval(), quant


@pytest.mark.parametrize("granularity", ["per_channel", "per_tensor", "per_group"])
@pytest.mark.parametrize("scheme", ["w1a32", "w2a32", "w3a16", "w4a4", "w8a8"])
def test_packed_equals_trained_bit_for_bit(scheme, granularity):
    model, _ = trained(scheme, weight=WeightSection(granularity=granularity))
    images = torch.randn(4, 3, 12, 12)
    with torch.no_grad():
        expected = model(images)
        packed = convert.convert(copy.deepcopy(model))
        assert isinstance(packed.depthwise, PackedConv2d)
        assert torch.equal(packed(images), expected)
        assert not torch.allclose(Net().eval()(images), expected, atol=1e-4)


@pytest.mark.parametrize("scheme", ["w2a32", "w4a4"])
def test_packed_tensors_load_into_a_fresh_model(scheme):
    model, quant = trained(scheme)
    packed = convert.convert(model)
    specs = {
        name: type(spec).from_json(spec.to_json())
        for name, spec in convert.packed_specs(packed).items()
    }
    fresh = convert.install(Net(), specs, quant).eval()
    fresh.load_state_dict(packed.state_dict())
    images = torch.randn(4, 3, 12, 12)
    assert torch.equal(fresh(images), packed(images))


def test_a_depthwise_filter_has_a_scale_of_its_own():
    model, _ = trained("w2a32")
    assert isinstance(model.depthwise, QuantConv2d)
    assert model.depthwise.weight_quantizer.scale.shape == (8, 1)
    weight = model.depthwise.weight_quantizer(model.depthwise.weight.flatten(1)).detach()
    assert all(len(row.unique()) <= 4 for row in weight)


def test_gradients_reach_weights_scales_and_inputs():
    model, _ = trained("w4a4")
    model.train()
    images = torch.randn(2, 3, 12, 12, requires_grad=True)
    model(images).square().sum().backward()
    for layer in (model.stem, model.depthwise, model.pointwise):
        assert layer.weight.grad.abs().max() > 0
        assert layer.weight_quantizer.scale.grad.abs().max() > 0
        assert layer.input_quantizer.scale.grad.abs().max() > 0
    assert images.grad.abs().max() > 0


@pytest.mark.parametrize("packed", [False, True])
def test_restored_convolutions_are_plain_again(packed):
    model, _ = trained("w8a32")
    images = torch.randn(4, 3, 12, 12)
    expected = model(images)
    restored = convert.restore(convert.convert(model) if packed else model)
    assert type(restored.depthwise) is nn.Conv2d and type(restored.fc) is nn.Linear
    assert restored.depthwise.groups == 8 and restored.depthwise.dilation == (1, 2)
    assert torch.allclose(restored(images), expected, atol=0.05)


@pytest.mark.parametrize("edge, bits", [("float", 16), ("8bit", 8), ("same", 2)])
def test_the_first_convolution_and_the_classifier_follow_their_own_rule(edge, bits):
    model = Net()
    assert edges(model) == {"stem", "fc"}
    quant = QuantSection(scheme="w2a32", edges=edge)
    for name in ("stem", "fc"):
        assert rule(name, getattr(model, name), quant, edge=True).bits == bits
    assert rule("pointwise", model.pointwise, quant).bits == 2


def test_what_cannot_be_quantized_stays_float_and_says_why(caplog):
    quant = QuantSection(scheme="w4a32", skip=["features.18.*"])
    mirrored = nn.Conv2d(3, 3, 3, padding=1, padding_mode="reflect")
    assert "reflect" in rule("x", mirrored, quant).reason
    for padding in ("same", "valid"):
        named = nn.Conv2d(3, 3, 3, padding=padding)
        assert padding in rule("x", named, quant).reason
    model = nn.Sequential(mirrored, nn.Conv1d(4, 4, 3), nn.Conv2d(3, 3, 3), nn.Linear(4, 4))
    with caplog.at_level("WARNING", "edgeqat"):
        edgeqat.prepare(model, "w4a32")
    assert "left in float: 0 (padding" in caplog.text and "1 (Conv1d)" in caplog.text
    assert "2 (" not in caplog.text
    with pytest.raises(ModelError, match="quantizes nothing in a Sequential"):
        edgeqat.prepare(nn.Sequential(nn.Conv1d(4, 4, 3)), "w4a32")
    model = edgeqat.prepare(build("mobilenetv2-cifar10"), quant=quant)
    assert type(model.features[18][0]) is nn.Conv2d
    assert isinstance(model.features[1].conv[0][0], QuantConv2d)
    assert type(model.features[1].conv[0][1]) is nn.BatchNorm2d


def test_bits_of_single_convolutions_can_be_named():
    quant = QuantSection(scheme="w4a8", layer_bits={"features.*": 8})
    assert rule("features.0", nn.Conv2d(3, 4, 3), quant).bits == 8
    assert rule("other.0", nn.Conv2d(3, 4, 3), quant).bits == 4
