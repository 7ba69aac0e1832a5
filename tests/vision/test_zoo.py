"""Float image classifiers: published sizes, torchvision's keys, and the names that build them."""

import os
from pathlib import Path

import pytest
import torch

from edgeqat.errors import UsageError
from edgeqat.vision.zoo import build, parse

TEACHER = (
    Path(os.environ.get("EDGEQAT_MODELS", "missing")) / "mobilenetv2-x0.5-cifar100.safetensors"
)


@pytest.mark.parametrize(
    "name, millions",  # of the papers and torchvision's model pages
    [
        ("resnet18", 11.689512),
        ("resnet34", 21.797672),
        ("resnet50", 25.557032),
        ("mobilenetv2", 3.504872),
        ("efficientnet-b0", 5.288548),
    ],
)
def test_sizes_are_the_published_ones(name, millions):
    with torch.device("meta"):
        model = build(name)
    assert sum(p.numel() for p in model.parameters()) == round(millions * 1e6)


@pytest.mark.parametrize("name", ["resnet18", "resnet20", "mobilenetv2", "efficientnet-b0"])
def test_images_become_logits(name):
    model = build(f"{name}-cifar100").eval()
    assert model(torch.randn(2, 3, 32, 32)).shape == (2, 100)
    assert build(name, classes=7).eval()(torch.randn(1, 3, 64, 64)).shape == (1, 7)


def test_keys_are_torchvisions():
    keys = {name: set(build(f"{name}-cifar10").state_dict()) for name in (
        "resnet18", "mobilenetv2", "efficientnet-b0")}  # fmt: skip
    assert {"layer2.0.downsample.1.running_var", "layer4.1.conv2.weight", "fc.bias"} <= keys[
        "resnet18"
    ]
    assert {"features.1.conv.1.weight", "features.2.conv.0.0.weight", "classifier.1.bias"} <= keys[
        "mobilenetv2"
    ]
    assert {"features.1.0.block.1.fc1.bias", "features.2.0.block.3.1.weight"} <= keys[
        "efficientnet-b0"
    ]


def test_names():
    assert parse("mobilenetv2-cifar100") == ("mobilenetv2", 0.5, "cifar100")
    assert parse("mobilenetv2-x1.0-cifar10") == ("mobilenetv2", 1.0, "cifar10")
    assert parse("resnet18-imagenet") == ("resnet18", 1.0, "imagenet")
    assert parse("llama-58m") is None
    with pytest.raises(UsageError, match="did you mean 'resnet18'"):
        build("resnet81")


def test_dropped_paths_keep_the_mean():
    from edgeqat.vision.efficientnet import MBConv

    torch.manual_seed(0)
    block = MBConv(8, 8, 6, 3, 1, drop_prob=0.5).train()
    kept = MBConv(8, 8, 6, 3, 1, drop_prob=0.0).train()
    kept.load_state_dict(block.state_dict())
    images = torch.randn(512, 8, 4, 4)
    for module in (block, kept):
        module.block.eval()  # the same batch norm, whatever is dropped
    branch, dropped = (kept(images) - images).flatten(1), (block(images) - images).flatten(1)
    ratio = dropped.norm(dim=1) / branch.norm(dim=1)
    assert set(ratio.round(decimals=3).tolist()) == {0.0, 2.0}


@pytest.mark.skipif(not TEACHER.is_file(), reason="EDGEQAT_MODELS has no float teacher")
def test_the_float_teacher_loads():
    from safetensors.torch import load_file

    state = load_file(TEACHER)
    build("mobilenetv2-cifar100").load_state_dict(state)
