"""Weights that are no numbers are named, with their count, before anything is computed."""

from __future__ import annotations

import pytest
import tiny
import torch
from torch import nn

import edgeqat
from edgeqat.cli import run
from edgeqat.errors import ModelError


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
def test_a_broken_weight_is_named_with_its_count(value):
    net = nn.Sequential(nn.Linear(64, 8), nn.BatchNorm1d(8))
    with torch.no_grad():
        net[0].weight[:2, :3] = value
    with pytest.raises(ModelError, match=r"0.weight of 'Sequential' holds 6 of 512 values"):
        edgeqat.prepare(net, "w8a16")


def test_buffers_count_and_other_tensors_are_mentioned():
    net = nn.Sequential(nn.Linear(64, 8), nn.BatchNorm1d(8))
    net[1].running_var[0] = float("nan")
    net[0].bias.data[0] = float("nan")
    with pytest.raises(ModelError, match=r"0.bias .* 1 of 8 values .*, and 1 more tensors"):
        edgeqat.prepare(net, "w8a16")


@pytest.mark.parametrize("more", [["--dry-run"], ["--steps", "0"], []])
def test_a_run_refuses_a_broken_model_at_its_start(tmp_path, text_file, capsys, more):
    model = tiny.llama()
    with torch.no_grad():
        model.model.layers[1].mlp.up_proj.weight[0, 0] = float("nan")
    model.save_pretrained(tmp_path / "broken")
    tiny.tokenizer().save_pretrained(tmp_path / "broken")
    arguments = ["quantize", "--model", str(tmp_path / "broken"), "--data", str(text_file)]
    assert run([*arguments, "--w4a8kv4", "--output", str(tmp_path / "out"), *more]) == 2
    said = capsys.readouterr().err
    assert "model.layers.1.mlp.up_proj.weight of" in said and "1 of 6144 values" in said
    assert not list(tmp_path.glob("out*"))


def test_a_broken_weights_file_is_named(tmp_path, model_folder, text_file, capsys):
    from safetensors.torch import save_file

    state = {name: tensor.clone() for name, tensor in tiny.llama().state_dict().items()}
    state["model.norm.weight"][3] = float("inf")
    del state["lm_head.weight"]
    save_file(state, tmp_path / "w.safetensors")
    arguments = [
        "quantize",
        "--model",
        str(model_folder),
        "--weights",
        str(tmp_path / "w.safetensors"),
    ]
    assert run([*arguments, "--data", str(text_file), "--w4a8kv4", "--dry-run"]) == 2
    assert "model.norm.weight of" in capsys.readouterr().err


def test_a_broken_classifier_is_named(tmp_path):
    from safetensors.torch import save_file

    from edgeqat.hf import image_model
    from edgeqat.vision import zoo

    state = zoo.build("mobilenetv2-x0.5-cifar10", 10).state_dict()
    name = next(key for key, tensor in state.items() if tensor.ndim == 4)
    state[name][0] = float("nan")
    save_file(state, tmp_path / "w.safetensors")
    with pytest.raises(ModelError, match=f"{name} of"):
        image_model.load("mobilenetv2-x0.5-cifar10", str(tmp_path / "w.safetensors"))
