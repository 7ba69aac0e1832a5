"""Adaptive models in packed folders: thresholds stored, loaded bit for bit, needed."""

from __future__ import annotations

import json

import pytest
import tiny
import torch

import edgeqat
from edgeqat import checkpoint
from edgeqat.errors import FormatError
from edgeqat.hf import packed_folder
from edgeqat.nn import convert
from edgeqat.nn.calibration import calibrate
from edgeqat.recipe.quant import QuantSection


def written(path, drop="", **quant):
    section = QuantSection.model_validate({"scheme": "w4a4kv3", **quant})
    model = edgeqat.prepare(tiny.llama(num_hidden_layers=3), quant=section)
    calibrate(model, iter([tiny.ids(8, 32, seed=3)]))
    convert.convert(model)
    path.mkdir()
    packed_folder.write(path, model, section, tiny.tokenizer())
    if drop:
        tensors = packed_folder.stored_tensors(model)
        kept = {name: tensor for name, tensor in tensors.items() if drop not in name}
        checkpoint.write_tensors(path / checkpoint.WEIGHTS, kept)
        packed_folder.seal(path, model, section)
    return model


@torch.no_grad()
def logits(model):
    return model.eval()(tiny.ids()).logits


@pytest.mark.parametrize("rule", ["importance", "reversed", "random", "layers"])
@pytest.mark.parametrize("mode", ["dynamic", "static"])
def test_a_folder_loads_back_bit_for_bit(tmp_path, rule, mode):
    adaptive = {"share": 0.4, "rule": rule}
    model = written(tmp_path / "packed", adaptive=adaptive, activation={"mode": mode})
    assert torch.equal(logits(edgeqat.load(tmp_path / "packed")), logits(model))


def test_only_adaptive_folders_are_of_the_new_version(tmp_path):
    written(tmp_path / "plain", rotate_residual=False)
    written(tmp_path / "adaptive", adaptive=0.5, rotate_residual=False)
    plain, adaptive = (
        json.loads((tmp_path / name / "config.json").read_text())["quantization_config"]
        for name in ("plain", "adaptive")
    )
    assert plain["format_version"] == 1
    assert "adaptive" not in plain["quant"]
    assert adaptive["format_version"] == 2
    assert adaptive["quant"]["adaptive"] == {"share": 0.5, "rule": "importance"}


def test_thresholds_are_stored_for_the_layers_that_decide(tmp_path):
    written(tmp_path / "packed", adaptive=0.5)
    header = checkpoint.read_header(tmp_path / "packed" / checkpoint.WEIGHTS)
    found = {name: entry for name, entry in header.items() if name.endswith("threshold")}
    name = "model.layers.{}.self_attn.attention_quantizer.importance.threshold"
    assert set(found) == {name.format(0), name.format(1)}
    assert {(entry["dtype"], tuple(entry["shape"])) for entry in found.values()} == {("F32", (1,))}


def test_missing_thresholds_are_refused(tmp_path):
    written(
        tmp_path / "packed", drop="layers.1.self_attn.attention_quantizer.importance", adaptive=0.5
    )
    with pytest.raises(
        FormatError, match=r"thresholds: .*layers.1.*copy the folder again"
    ) as caught:
        edgeqat.load(tmp_path / "packed")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "drop",
    [
        "attention_quantizer.key.offset",
        "layers.0.mlp.up_proj.weight_scale",
        "layers.1.input_layernorm.weight",
        "layers.0.mlp.up_proj.weight",
    ],
)
def test_every_missing_tensor_is_refused(tmp_path, drop):
    written(tmp_path / "packed", drop=drop)
    with pytest.raises(FormatError, match=r"weights: .* is missing .*copy the folder again"):
        edgeqat.load(tmp_path / "packed")


def test_a_half_precision_model_keeps_its_norms_in_float32(tmp_path):
    section = QuantSection.model_validate({"scheme": "w4a8kv4"})
    model = edgeqat.prepare(tiny.llama().half(), quant=section)
    calibrate(model, iter([tiny.ids(8, 32, seed=3)]))
    stored = packed_folder.stored_tensors(convert.convert(model))
    assert {t.dtype for n, t in stored.items() if "weight_scale" in n} == {torch.float16}
    assert {t.dtype for n, t in stored.items() if "norm" in n} == {torch.float32}
