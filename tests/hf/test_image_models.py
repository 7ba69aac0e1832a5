"""Image models of transformers and a user's own modules: prepared, packed, loaded back."""

import json

import pytest
import torch
from torch import nn
from transformers import (
    MobileNetV2Config,
    MobileNetV2ForImageClassification,
    ResNetConfig,
    ResNetForImageClassification,
    ViTConfig,
    ViTForImageClassification,
)

import edgeqat
from edgeqat.errors import ModelError
from edgeqat.hf import image_folder, image_model
from edgeqat.nn import convert
from edgeqat.nn.blocks import block_names
from edgeqat.nn.calibration import calibrate
from edgeqat.nn.logits import class_logits
from edgeqat.recipe.quant import QuantSection

MODELS = {
    "vit": (ViTForImageClassification, ViTConfig(
        image_size=16, patch_size=4, hidden_size=32, num_hidden_layers=2, num_attention_heads=2,
        intermediate_size=48, num_labels=5)),
    "resnet": (ResNetForImageClassification, ResNetConfig(
        embedding_size=8, hidden_sizes=[8, 16], depths=[1, 2], layer_type="basic", num_labels=5)),
    "mobilenet_v2": (MobileNetV2ForImageClassification, MobileNetV2Config(
        depth_multiplier=0.25, image_size=16, num_labels=5)),
}  # fmt: skip


def made(name):
    kind, config = MODELS[name]
    torch.manual_seed(0)
    model = kind(config).train()
    with torch.no_grad():
        for _ in range(40):  # statistics of the batch norms
            model(torch.randn(4, 3, 16, 16))
    return model.eval()


@pytest.fixture(scope="module", params=MODELS)
def folder(request, tmp_path_factory):
    path = tmp_path_factory.mktemp("float") / request.param
    made(request.param).save_pretrained(path)
    return path


@pytest.mark.parametrize("scheme", ["w4a8", "w2a32"])
def test_a_folder_of_transformers_is_packed_and_loads_back(folder, tmp_path, scheme):
    assert image_model.is_image_model(str(folder))
    model, kind = image_model.load(str(folder))
    assert (kind.network, kind.classes) == (None, 5)
    images = torch.randn(3, 3, 16, 16)
    with torch.no_grad():
        floating = class_logits(model, images)
        quant = QuantSection(scheme=scheme)
        prepared = edgeqat.prepare(model, quant=quant)
        calibrate(prepared, iter([images]))
        expected = class_logits(prepared, images)
        assert (expected - floating).abs().max() > 1e-3 * floating.abs().max() > 0
        convert.convert(prepared)
        image_folder.write(tmp_path, prepared, quant, kind)
        assert torch.equal(class_logits(edgeqat.load(tmp_path), images), expected)
    with pytest.raises(ModelError, match="is quantized already"):
        image_model.load(str(tmp_path))


HALF = {"image_mean": [0.5] * 3, "image_std": [0.5] * 3}


@pytest.mark.parametrize(
    ("values", "mean", "deviation"),
    [
        ({**HALF, "do_normalize": True, "rescale_factor": 1 / 255}, 0.5, 0.5),
        ({**HALF, "do_normalize": False}, 0.0, 1.0),
        ({**HALF, "include_top": True}, 0.5, 0.25),
    ],
)
def test_pixels_are_normalised_as_transformers_does(tmp_path, values, mean, deviation):
    made("vit").save_pretrained(tmp_path)
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(values))
    kind = image_model.load(str(tmp_path))[1]
    assert (kind.mean, kind.deviation) == ((mean,) * 3, (deviation,) * 3)


@pytest.mark.parametrize(
    "values",
    [{"do_flip_channel_order": True}, {"rescale_factor": 1 / 127.5}, {"do_rescale": False}],
)
def test_pixels_made_otherwise_are_refused(tmp_path, values):
    made("vit").save_pretrained(tmp_path)
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(values))
    with pytest.raises(ModelError, match=f"{next(iter(values))} of .* which is not known here"):
        image_model.load(str(tmp_path))


def test_blocks_of_a_transformer_are_its_layers():
    names = block_names(made("vit"))
    assert len(names) == 2 and all("layer" in name for name in names)


def test_restored_models_are_float_again():
    model = edgeqat.prepare(made("vit"), "w8a32")
    edgeqat.restore(model)
    images = torch.randn(2, 3, 16, 16)
    assert torch.allclose(model(images).logits, made("vit")(images).logits, atol=1e-2)


def test_vit_tiny_has_the_published_size():
    with torch.device("meta"):
        model = image_model.named("vit-tiny-imagenet").build()
    assert sum(p.numel() for p in model.parameters()) == pytest.approx(5.717e6, rel=1e-3)
    assert image_model.named("vit-tiny-cifar100").size == 32


def test_a_transformer_is_built_for_the_size_that_is_asked_for():
    kind = image_model.named("vit-tiny-cifar100").sized(16)
    assert kind.build()(torch.randn(1, 3, 16, 16)).logits.shape == (1, 100)


def test_a_user_s_own_module():
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.one, self.two = nn.Conv2d(3, 8, 3), nn.Conv2d(8, 8, 3)
            self.fc = nn.Linear(8, 4)

        def forward(self, images):
            return self.fc(torch.relu(self.two(torch.relu(self.one(images)))).mean((2, 3)))

    net = edgeqat.prepare(Net(), scheme="w2a32").train()
    images = torch.randn(4, 3, 8, 8)
    net(images).square().sum().backward()
    assert net.two.weight.grad.abs().max() > 0
    assert net.two.weight_quantizer.scale.grad.abs().max() > 0
    expected = net.eval()(images)
    assert torch.equal(edgeqat.convert(net)(images), expected)
