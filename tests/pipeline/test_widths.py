"""Mixed widths of a run: within the size that was asked for, served by every way of loading."""

from __future__ import annotations

import json

import numpy as np
import pytest
import tiny
import torch
from pydantic import ValidationError
from transformers import GPT2Config, GPT2LMHeadModel

import edgeqat
from edgeqat.cli import run
from edgeqat.errors import RecipeError
from edgeqat.pipeline.plan import plan
from edgeqat.pipeline.quantize import quantize


def layers(folder):
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    return config["quantization_config"]["layers"]


def average(specs) -> float:
    """Bits a weight of a folder's layers, scales included; tied heads have none of their own."""
    bits = weights = 0
    for spec in specs.values():
        rows, columns = spec["shape"]
        if not spec["tied_to"]:
            groups = -(-columns // spec["group_size"]) if spec["group_size"] else 1
            bits += rows * (columns * spec["bits"] + 16 * groups)
            weights += rows * columns
    return bits / weights


@pytest.mark.parametrize("wanted", [4.0, 5.5])
def test_a_run_meets_its_average_and_records_each_layer(recipe, tmp_path, wanted):
    chosen = recipe(quant={"average_bits": wanted}, train={"steps": 0})
    predicted = plan(chosen, tmp_path / "out")
    quantize(chosen, tmp_path / "out")
    specs = layers(tmp_path / "out")
    assert average(specs) <= wanted
    assert average(specs) > wanted - 1.0
    assert len({spec["bits"] for spec in specs.values()}) > 1
    assert predicted.total_bytes == (tmp_path / "out" / "model.safetensors").stat().st_size
    resolved = (tmp_path / "out" / "recipe.resolved.yaml").read_text(encoding="utf-8")
    assert "layer_bits" in resolved
    with torch.no_grad():
        expected = edgeqat.load(tmp_path / "out", integer=True)(input_ids=tiny.ids(1, 12)).logits
    engine = edgeqat.Engine(tmp_path / "out")
    found = torch.from_numpy(np.asarray(engine.prefill(tiny.ids(1, 12)[0].tolist(), every=True)))
    assert torch.nn.functional.cosine_similarity(found, expected[0], dim=-1).min() > 0.999


@pytest.mark.parametrize("bits", [4, 6])
def test_narrow_tied_embeddings_run_on_the_engine(recipe, tmp_path, bits):
    quantize(recipe(quant={"embedding_bits": bits}, train={"steps": 0}), tmp_path / "out")
    spec = layers(tmp_path / "out")["model.embed_tokens"]
    assert (spec["bits"], layers(tmp_path / "out")["lm_head"]["bits"]) == (bits, bits)
    ids = tiny.ids(1, 12)
    with torch.no_grad():
        expected = edgeqat.load(tmp_path / "out", integer=True)(input_ids=ids).logits
    found = torch.from_numpy(
        np.asarray(edgeqat.Engine(tmp_path / "out").prefill(ids[0].tolist(), every=True))
    )
    assert torch.nn.functional.cosine_similarity(found, expected[0], dim=-1).min() > 0.999


def test_single_layers_can_be_named(recipe, tmp_path):
    named = {"*.down_proj": 6, "model.layers.0.mlp.up_proj": 3}
    quantize(recipe(quant={"layer_bits": named}, train={"steps": 0}), tmp_path / "out")
    specs = layers(tmp_path / "out")
    assert specs["model.layers.1.mlp.down_proj"]["bits"] == 6
    assert specs["model.layers.0.mlp.up_proj"]["bits"] == 3
    assert specs["model.layers.1.mlp.up_proj"]["bits"] == 4


def test_a_size_that_cannot_be_reached_is_refused(recipe, tmp_path):
    with pytest.raises(RecipeError, match=r"average_bits: .* raise it"):
        plan(recipe(quant={"average_bits": 1.5}), tmp_path / "out")


def test_measure_belongs_to_a_dry_run(capsys):
    assert run(["quantize", "--model", "demo", "--measure"]) == 2
    assert "add --dry-run" in capsys.readouterr().err


@pytest.fixture
def gpt2(tmp_path):
    sizes = {"n_embd": 64, "n_layer": 2, "n_head": 4, "n_positions": 128}
    model = GPT2LMHeadModel(GPT2Config(vocab_size=tiny.VOCABULARY, **sizes))
    model.save_pretrained(tmp_path / "gpt2")
    tiny.tokenizer().save_pretrained(tmp_path / "gpt2")
    return {"name": str(tmp_path / "gpt2")}


def test_layers_of_gpt2_are_in_the_plan_and_take_several_widths(recipe, gpt2, tmp_path):
    names = [row[0] for row in plan(recipe(model=gpt2), tmp_path / "out").rows]
    assert "transformer.h.1.mlp.c_fc" in names
    chosen = recipe(model=gpt2, quant={"average_bits": 5.5}, train={"steps": 0})
    predicted = plan(chosen, tmp_path / "out")
    quantize(chosen, tmp_path / "out")
    specs = layers(tmp_path / "out")
    assert average(specs) <= 5.5
    assert len({spec["bits"] for name, spec in specs.items() if ".h." in name}) > 1
    assert predicted.total_bytes == (tmp_path / "out" / "model.safetensors").stat().st_size


@pytest.mark.parametrize(
    ("quant", "words"),
    [
        ({"scheme": "w16a8kv4", "average_bits": 4}, r"average_bits: 4 needs quantized weights"),
        ({"average_bits": 5, "layer_bits": {"*": 4}}, r"average_bits: .* leave one out"),
        ({"average_bits": 5, "skip": ["*"]}, r"average_bits: no layer is left"),
        ({"layer_bits": {"*.dwn_proj": 8}}, r"quant.layer_bits: '\*.dwn_proj' matches no layer"),
    ],
)
def test_widths_that_would_be_dropped_are_refused(recipe, tmp_path, quant, words):
    with pytest.raises((RecipeError, ValidationError), match=words):
        plan(recipe(quant=quant), tmp_path / "out")


def test_tied_heads_show_no_width_of_their_own(recipe, tmp_path):
    rows = plan(recipe(quant={"average_bits": 5.5}), tmp_path / "out").rows
    head = next(row for row in rows if row[0] == "lm_head")
    assert head[2:4] == ("-", "-")
