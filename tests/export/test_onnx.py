"""Packed classifiers and their ONNX graphs answer alike; `edgeqat export` and `bench` of both."""

import json
from dataclasses import replace

import pytest
import torch
from onnx import load
from torch import nn

from edgeqat.bench.onnx_runtime import OnnxClassifier
from edgeqat.cli import run
from edgeqat.errors import ModelError
from edgeqat.export import onnx
from edgeqat.hf import image_folder
from edgeqat.hf.image_model import named
from edgeqat.nn import convert
from edgeqat.nn.calibration import calibrate
from edgeqat.quant.lsq import StaticQuantizer
from edgeqat.recipe.quant import QuantSection
from edgeqat.vision.zoo import build

SCHEMES = ("w1a32", "w2a32", "w4a32", "w8a8", "w4a4", "w2a2")


def packed(name, scheme, **quant):
    """A packed classifier with statistics that are not trivial; some gammas are negative."""
    torch.manual_seed(0)
    model = build(name)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.normal_(module.weight, 0.6, 0.6)
            nn.init.normal_(module.bias, 0, 0.3)
    section = QuantSection(scheme=scheme, **quant)
    model.train()
    for _ in range(3):
        model(torch.randn(16, 3, 16, 16))
    convert.prepare(model.eval(), section)
    calibrate(model, iter([torch.randn(16, 3, 16, 16)]))
    return convert.convert(model), section


def difference(model, path):
    """The largest distance of logits in units of their spread, and how many answers agree."""
    images = torch.randn(24, 3, 16, 16)
    with torch.no_grad():
        expected = model(images)
    found = torch.from_numpy(OnnxClassifier(path, 1)(images))
    agreed = (found.argmax(1) == expected.argmax(1)).float().mean().item()
    return ((found - expected).abs().max() / expected.std()).item(), agreed


@pytest.mark.parametrize("scheme", SCHEMES)
def test_graph_and_packed_model_answer_alike(tmp_path, scheme):
    model, _ = packed("resnet20-cifar10", scheme)
    onnx.export(model, 16, tmp_path / "net.onnx", {})
    distance, agreed = difference(model, tmp_path / "net.onnx")
    if scheme.endswith("a32"):
        assert distance < 1e-3 and agreed == 1
    else:  # a code that flips at a tie moves all that follows
        assert agreed > 0.9


@pytest.mark.parametrize("scheme", ["w8a8", "w4a4", "w2a2", "w3a6"])
def test_one_quantized_layer_is_exact(tmp_path, scheme):
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU(),
                        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 4)).eval()  # fmt: skip
    nn.init.normal_(net[1].weight)
    section = QuantSection(scheme=scheme, edges="same", skip=["5"])
    convert.prepare(net, section)
    calibrate(net, iter([torch.randn(16, 3, 16, 16)]))
    convert.convert(net)
    onnx.export(net, 16, tmp_path / "net.onnx", {})
    distance, agreed = difference(net, tmp_path / "net.onnx")
    assert distance < 1e-3 and agreed == 1


def static(model):
    return [own for own in model.modules() if isinstance(own, StaticQuantizer)]


def test_zero_points_are_rounded_only_where_it_is_asked_for(tmp_path):
    model, _ = packed("mobilenetv2-x0.1-cifar10", "w8a8")
    with torch.no_grad():
        for own in static(model):
            own.beta.add_(0.3 * own.scale)  # as training moves it
    (exact,) = onnx.export(model, 16, tmp_path / "exact.onnx", {})
    rounded, *_ = onnx.export(model, 16, tmp_path / "rounded.onnx", {}, requantize=True)
    moved = [(-own.beta / own.scale).item() for own in static(model)]
    shifts = [abs(value - round(value)) for value in moved if -128 <= round(value) <= 127]
    shifts = [shift for shift in shifts if shift >= 1e-4]
    assert exact == (
        "offsets of activations and biases are exact, so that runtimes compute in float32; "
        "--requantize rounds them, for integers"
    )
    assert rounded == (
        f"{len(shifts)} of {len(moved)} activation quantizers have rounded zero points: values "
        f"move by up to {max(shifts):.2f} steps, {sum(shifts) / len(shifts):.2f} on average"
    )
    distances = [difference(model, tmp_path / f"{name}.onnx")[0] for name in ("exact", "rounded")]
    assert 2 * distances[0] < distances[1]


def test_offsets_that_are_zero_points_need_no_rounding(tmp_path):
    model, _ = packed("resnet20-cifar10", "w8a8")
    with torch.no_grad():
        for own in static(model):
            own.beta.copy_((own.beta / own.scale).round().clamp(-127, 128) * own.scale)
    lines = onnx.export(model, 16, tmp_path / "net.onnx", {}, requantize=True)
    assert not [line for line in lines if "zero points" in line]
    onnx.export(model, 16, tmp_path / "net.onnx", {})
    graph = load(tmp_path / "net.onnx").graph
    assert "Sub" not in {node.op_type for node in graph.node}
    assert difference(model, tmp_path / "net.onnx")[1] > 0.9


@pytest.mark.parametrize("requantize", [False, True])
def test_the_lowest_code_behind_a_negative_gamma(tmp_path, requantize):
    net = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(),
                        nn.AdaptiveAvgPool2d(1), nn.Flatten()).eval()  # fmt: skip
    with torch.no_grad():
        net[1].weight.copy_(torch.tensor([-1.0, 1] * 4))
        net[1].bias.fill_(5)
        net[0].weight[:, 0, 0, 0] = -2  # below what its scale reaches: code -128
    convert.prepare(net, QuantSection(scheme="w8a16kv16", edges="same"))
    with torch.no_grad():
        net[0].weight_quantizer.scale.mul_(0.25)
    convert.convert(net)
    lowest = int((net[0].codes()[::2] == -128).sum())
    lines = onnx.export(net, 16, tmp_path / "net.onnx", {}, requantize)
    words = f"{lowest} weights of level 128 became 127, the largest of int8"
    assert lowest >= 4 and lines == ([words] if requantize else [])
    images = torch.randn(4, 3, 16, 16)
    found = torch.from_numpy(OnnxClassifier(tmp_path / "net.onnx", 1)(images))
    with torch.no_grad():
        assert ((found - net(images)).abs().max() < 1e-5) is not requantize


@pytest.mark.parametrize("name", ["mobilenetv2-x0.1-cifar10", "efficientnet-b0-cifar10"])
def test_other_architectures(tmp_path, name):
    model, _ = packed(name, "w4a32", edges="float")
    onnx.export(model, 16, tmp_path / "net.onnx", {})
    distance, agreed = difference(model, tmp_path / "net.onnx")
    assert distance < 1e-3 and agreed == 1


def test_a_float_graph_is_the_restored_model(tmp_path):
    model, _ = packed("resnet20-cifar10", "w2a32")
    convert.restore(model)
    onnx.export(model, 16, tmp_path / "net.onnx", {})
    assert difference(model, tmp_path / "net.onnx")[0] < 1e-4


class Odd(nn.Module):
    def __init__(self):
        super().__init__()
        self.fc = nn.Linear(3, 2)

    def forward(self, images):
        return self.fc(torch.cumsum(images, 2).mean((2, 3)))


def test_what_onnx_cannot_hold_is_named(tmp_path):
    with pytest.raises(ModelError, match="'cumsum' in the forward pass of Odd is not supported"):
        onnx.export(Odd(), 8, tmp_path / "net.onnx", {})
    rotated = convert.convert(convert.prepare(Odd(), QuantSection(scheme="w4a8")))
    with pytest.raises(ModelError):
        onnx.export(rotated, 8, tmp_path / "net.onnx", {})
    assert not list(tmp_path.iterdir())


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    model, section = packed("resnet20-cifar10", "w8a8")
    place = tmp_path_factory.mktemp("packed")
    kind = replace(named("resnet20-cifar10").sized(16), labels=tuple("abcdefghij"))
    image_folder.write(place, model, section, kind)
    return place


def test_a_folder_is_exported_and_measured(folder, tmp_path, capsys):
    assert run(["export", "onnx", str(folder), "--output", str(tmp_path / "net.onnx")]) == 0
    output = capsys.readouterr().out
    assert "logits (batch, 10)" in output and "--requantize rounds them" in output
    rounded = ["--output", str(tmp_path / "rounded.onnx"), "--requantize"]
    assert run(["export", "onnx", str(folder), *rounded]) == 0
    assert "have rounded zero points: values move by up to 0." in capsys.readouterr().out
    assert run(["export", "onnx", str(folder), "--output", str(tmp_path / "net.onnx")]) == 2
    assert "exists" in capsys.readouterr().err
    arguments = ["--repeat", "1", "--threads", "1"]
    for kind in ("json", "csv", "png"):
        arguments += [f"--{kind}", str(tmp_path / f"rows.{kind}")]
    assert run(["bench", str(folder), *arguments]) == 0
    rows = json.loads((tmp_path / "rows.json").read_text())
    assert {(row["engine"], row["test"]) for row in rows} == {
        (engine, test)
        for engine in ("onnxruntime", "onnxruntime-float", "torch")
        for test in ("b1", "b64")
    }
    assert all(row["images_per_second"]["mean"] > 0 for row in rows)
    lines = (tmp_path / "rows.csv").read_text().splitlines()
    assert len(lines) == 7 and "images_per_second" in lines[0]
    assert (tmp_path / "rows.png").read_bytes().startswith(b"\x89PNG")
    sizes = {row["engine"]: row["file_bytes"] for row in rows}
    assert sizes["onnxruntime"] < 0.5 * sizes["onnxruntime-float"]


def test_integers_are_what_a_bench_measures(folder, monkeypatch):
    asked = []
    write = onnx.export

    def noted(model, size, path, facts, requantize=False):
        asked.append(requantize)
        return write(model, size, path, facts, requantize)

    monkeypatch.setattr(onnx, "export", noted)
    assert run(["bench", str(folder), "--engine", "onnxruntime", "--repeat", "1"]) == 0
    assert asked == [True]


def test_wrong_use(folder, packed_folder, tmp_path, capsys):
    place = str(tmp_path / "x")
    for given, words in (
        (["export", "onnx", str(packed_folder), "--output", place], "holds a language model"),
        (["export", "onnx", str(folder), "--output", place, "--drop-kv"], "drop-kv: it is for"),
        (["export", "onxn", str(folder), "--output", place], "did you mean 'onnx'"),
        (["bench", str(folder), "--engine", "native"], "engine: 'native' is unknown"),
        (["bench", str(folder), "--depth", "4"], "depth: images have none"),
        (["generate", str(folder), "--prompt", "x"], "holds an image classifier"),
    ):
        assert run(given) == 2
        assert words in capsys.readouterr().err
