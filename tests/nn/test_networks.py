"""Networks of anyone's own: what would be computed wrongly with quantized layers stays in float."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.nn.utils.parametrizations import weight_norm
from transformers import CLIPConfig, CLIPForImageClassification, Qwen2Config, Qwen2ForCausalLM

import edgeqat
from edgeqat.errors import ModelError
from edgeqat.nn.linear import QuantLinear
from edgeqat.recipe.quant import QuantSection


def error(found, expected):
    return ((found - expected).norm() / expected.norm()).item()


class Branches(nn.Module):
    """Two linear layers that share a weight or are one, a convolution with a forward of its own or
    with a weight made of others.
    """

    def __init__(self, kind):
        super().__init__()
        self.one = nn.Linear(64, 64)
        self.two = self.one if kind == "module" else nn.Linear(64, 64)
        if kind == "weight":
            self.two.weight = self.one.weight
        convolution = Doubled(4, 4, 3) if kind == "forward" else nn.Conv2d(4, 4, 3)
        self.convolution = weight_norm(convolution) if kind == "parametrized" else convolution
        self.last = nn.Linear(4 * 6 * 6, 5)

    def forward(self, input):
        hidden = self.two(torch.relu(self.one(input))).view(-1, 1, 8, 8).expand(-1, 4, -1, -1)
        return self.last(self.convolution(hidden).flatten(1))


class Doubled(nn.Conv2d):
    def forward(self, input):
        return self._conv_forward(input, 2 * self.weight, self.bias)


@pytest.mark.parametrize("kind", ["plain", "module", "weight", "forward", "parametrized"])
def test_a_network_computes_what_it_did(kind, caplog):
    torch.manual_seed(0)
    net, input = Branches(kind), torch.randn(4, 64)
    expected = net(input)
    edgeqat.prepare(net, quant=QuantSection(scheme="w8a16", edges="same"))
    for _ in range(2):
        net(input).sum().backward()
    assert error(net(input), expected) < 0.02
    edgeqat.convert(net)
    assert error(net(input), expected) < 0.02
    assert ("is not supported" in caplog.text) is (kind != "plain")


@pytest.mark.parametrize("order", ["embedding first", "head first"])
def test_a_head_tied_to_an_embedding_reads_its_codes(order):
    torch.manual_seed(0)
    parts = {"table": nn.Embedding(32, 64), "out": nn.Linear(64, 32, bias=False)}
    names = ["table", "out"] if order == "embedding first" else ["out", "table"]
    net, ids = nn.ModuleDict({name: parts[name] for name in names}), torch.arange(8)
    net["out"].weight = net["table"].weight
    expected = net["out"](net["table"](ids))
    edgeqat.prepare(net, "w8a16")
    assert error(net["out"](net["table"](ids)), expected) < 0.02
    edgeqat.convert(net)
    assert error(net["out"](net["table"](ids)), expected) < 0.02


@pytest.mark.filterwarnings("ignore:The PyTorch API of nested tensors")  # of the float one
@pytest.mark.parametrize("training", [True, False])
def test_torch_s_transformer_uses_the_quantized_layers(training):
    torch.manual_seed(0)
    layer = nn.TransformerEncoderLayer(64, 4, 128, dropout=0.0, batch_first=True)
    net, input = nn.TransformerEncoder(layer, 2).train(training), torch.randn(2, 5, 64)
    padded = torch.tensor([[False] * 5, [False] * 3 + [True] * 2])
    with torch.no_grad():
        expected = net(input, src_key_padding_mask=padded)[~padded]
        edgeqat.prepare(net, "w8a16")
        assert isinstance(net.layers[0].linear1, QuantLinear)
        assert error(net(input, src_key_padding_mask=padded)[~padded], expected) < 0.02
        edgeqat.convert(net)
        assert error(net(input, src_key_padding_mask=padded)[~padded], expected) < 0.02


def test_a_layer_alone_is_refused():
    with pytest.raises(ModelError, match="a Linear alone cannot be swapped in place"):
        edgeqat.prepare(nn.Linear(8, 8), "w8a16")


def test_clip_s_patches_are_left_to_it():
    part = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 1}
    part["num_attention_heads"] = 2
    vision, text = {**part, "image_size": 16, "patch_size": 4}, {**part, "vocab_size": 64}
    config = CLIPConfig(vision_config=vision, text_config=text, num_labels=5)
    model, pixels = CLIPForImageClassification(config).eval(), torch.randn(1, 3, 16, 16)
    expected = model(pixels).logits
    edgeqat.convert(edgeqat.prepare(model, "w8a32"))
    assert error(model(pixels).logits, expected) < 0.02


def test_a_16_bit_model_is_trained_in_float32():
    sizes = {"vocab_size": 64, "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 1}
    heads = {"num_attention_heads": 4, "num_key_value_heads": 2}
    model = Qwen2ForCausalLM(Qwen2Config(**sizes, **heads)).bfloat16()
    edgeqat.prepare(model, "w4a8kv4")
    assert model(torch.arange(8)[None]).logits.dtype == torch.float32
    assert {own.dtype for own in model.parameters()} == {torch.float32}


def test_a_packed_layer_takes_another_state():
    def made(seed):
        torch.manual_seed(seed)
        return edgeqat.convert(edgeqat.prepare(nn.Sequential(nn.Linear(64, 8)), "w4a16"))

    one, other, input = made(0), made(1), torch.randn(2, 64)
    assert not torch.equal(other(input), one(input))
    other.load_state_dict(one.state_dict())
    assert torch.equal(other(input), one(input))


class Auxiliary(nn.Module):
    """A head that runs in training only, batch norm and dropout."""

    def __init__(self):
        super().__init__()
        self.first, self.norm = nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8)
        self.aux, self.last = nn.Conv2d(8, 8, 1), nn.Conv2d(8, 8, 3)
        self.drop, self.fail = nn.Dropout(0.5), False

    def forward(self, input):
        hidden = self.norm(self.first(input))
        if self.fail:
            raise RuntimeError
        return self.last(self.drop(hidden)) + (self.aux(hidden).mean() if self.training else 0)


def test_calibration_leaves_what_did_not_run_unset():
    net = edgeqat.prepare(Auxiliary(), "w4a4").train()
    net.norm.eval()  # frozen
    edgeqat.calibrate(net, [torch.randn(2, 3, 8, 8)])
    assert net.training and net.drop.training and not net.norm.training
    assert net.norm.num_batches_tracked == 0
    assert net.last.input_quantizer.initialized and not net.aux.input_quantizer.initialized
    net(torch.randn(2, 3, 8, 8))  # the first batch of training sets it
    assert net.aux.input_quantizer.initialized


def test_calibration_that_fails_observes_no_longer():
    net = edgeqat.prepare(Auxiliary(), "w4a4").train()
    net.fail = True
    with pytest.raises(RuntimeError):
        edgeqat.calibrate(net, [torch.randn(2, 3, 8, 8)])
    assert net.training
    assert not any(own.input_quantizer.observing for own in (net.first, net.aux, net.last))


def test_inputs_of_inference_mode_may_be_written_to():
    net = edgeqat.prepare(nn.Sequential(nn.Linear(64, 8)), "w8a8")
    with torch.inference_mode():
        input = torch.randn(2, 64)
        before = net(input)
        assert not torch.equal(net(input.neg_()), before)


def test_batches_without_images_and_single_rows_pass():
    layers = nn.Sequential(nn.Conv2d(3, 8, 3), nn.Flatten(), nn.Linear(288, 4))
    net = edgeqat.prepare(layers, "w4a4")
    net(torch.randn(2, 3, 8, 8))
    assert net(torch.randn(0, 3, 8, 8)).shape == (0, 4)
    large = edgeqat.prepare(nn.Sequential(nn.Linear(1024, 1024)), "w4a16")
    input = torch.randn(1024, requires_grad=True)
    large(input).sum().backward()
    assert input.grad.shape == (1024,) and large[0].weight.grad.abs().sum() > 0
