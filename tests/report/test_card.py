"""The model card: front matter for the hub, table, licence, commands."""

from __future__ import annotations

import pytest
import tiny
import yaml

from edgeqat.hf import float_model
from edgeqat.recipe.quant import QuantSection
from edgeqat.recipe.recipe import Recipe
from edgeqat.report import card

METRICS = {
    "scheme": "w4a8kv4", "model": "x", "float": {"perplexity": 10.0}, "float_same_steps": None,
    "ptq": {"perplexity": 12.0}, "qat_start": {"perplexity": 11.5}, "qat": {"perplexity": 11.0},
    "recovered": 0.5, "train": {"steps": 3}, "bytes": {"total": 2_000_000, "fp16": 8_000_000},
    "average_bits": {"activations": 8.0, "kv": 4.06},
    "evaluation": {"blocks": 4, "context": 32, "bos": False},
}  # fmt: skip
CONFIG = tiny.llama(head_dim=64).config.to_dict()


def render(name, **quant):
    recipe = Recipe.model_validate({"model": {"name": name}, "quant": quant})
    text = card.render(METRICS, recipe, CONFIG)
    front = yaml.safe_load(text.split("---\n")[1])
    return front, text


def test_the_front_matter_is_what_the_hub_reads():
    front, _ = render("tinyllama")
    assert front == {
        "library_name": "edgeqat", "base_model": "TinyLlama/TinyLlama-1.1B-Chat-v1.0",
        "base_model_relation": "quantized", "pipeline_tag": "text-generation",
        "tags": ["edgeqat", "quantization-aware-training", "w4a8kv4"],
    }  # fmt: skip


def test_the_licence_is_that_of_the_base(tmp_path):
    folder = tmp_path / "base"
    tiny.llama().save_pretrained(folder)
    assert "license" not in render(str(folder))[0]
    (folder / "README.md").write_text("---\nlicense: mit\n---\n# Base\n", encoding="utf-8")
    front, _ = render(str(folder))
    assert front["license"] == "mit"
    assert front["base_model"] == "base"
    for text in ("no front matter", "---\n[broken\n---\n", "---\n- a list\n---\n"):
        (folder / "README.md").write_text(text, encoding="utf-8")
        assert float_model.license_of(str(folder)) is None


def test_the_table_leaves_nothing_out():
    _, text = render("demo")
    for row in ("| float | 10.000 |", "same 3 steps | - |", "no training | 12.000 |", "| 11.000 |"):
        assert row in text
    assert "Recovered 50.0%" in text
    assert "edgeqat quantize --recipe recipe.resolved.yaml" in text


def test_what_is_not_trained_or_not_rotated_is_not_called_so(monkeypatch):
    monkeypatch.setitem(METRICS, "train", {"steps": 0})
    monkeypatch.setitem(METRICS, "rotated", False)
    _, text = render("demo")
    assert "| w4a8kv4, packed, not trained | 11.000 |" in text
    assert "| ... where QAT starts | 11.500 |" in text
    assert "Quantized without training" in text and "QAT at" not in text
    monkeypatch.setitem(METRICS, "qat_start", METRICS["ptq"])
    assert "QAT starts" not in render("demo")[1]


def test_two_widths_are_said():
    _, text = render("demo", scheme="w4a4kv4", adaptive={"share": 0.5})
    assert "activations at 8 or 4 bit" in text and "share 0.5" in text
    assert "two widths" not in render("demo")[1]


def test_a_classifier_is_measured_in_top1():
    metrics = {**METRICS, **{row: {"top1": 60.0} for row in ("float", "ptq", "qat_start", "qat")}}
    assert "| | top1 |" in card.render(metrics, Recipe(), CONFIG)
    assert card.table(metrics)[-1] == ("QAT at w4a8kv4, packed", 60.0)
    metrics["qat_start"] = {"top1": 50.0}  # other scales, but images are never rotated
    assert ("... where QAT starts", 50.0) in card.table(metrics)
    metrics["norms_estimated"] = True
    assert ("... batch norms estimated anew, where QAT starts", 50.0) in card.table(metrics)


@pytest.mark.parametrize(
    ("quant", "targets"),
    [
        ({}, []),
        ({"activation": {"rotate": []}, "scheme": "w4a8"}, ["gguf", "compressed-tensors"]),
        ({"activation": {"rotate": []}, "scheme": "w4a4"}, []),
        ({"activation": {"rotate": []}}, ["compressed-tensors"]),
        (
            {
                "activation": {"rotate": []},
                "kv": {"llama_cpp": True, "sink_tokens": 0, "key_offset": False},
            },
            ["gguf", "compressed-tensors"],
        ),
        ({"activation": {"rotate": [], "mode": "q8_0"}, "scheme": "w4a8"}, ["gguf"]),
        ({"activation": {"rotate": [], "mode": "static"}, "scheme": "w4a8"}, []),
    ],
)
def test_exports_are_named_where_they_are_exact(quant, targets):
    commands = card.exports(QuantSection.model_validate(quant), CONFIG)
    assert [command.split()[2] for command in commands] == targets
    assert ("--drop-kv" in " ".join(commands)) == (bool(commands) and quant.get("scheme") is None)


def test_a_model_that_no_runtime_holds_has_no_exports():
    quant = QuantSection.model_validate({"scheme": "w4a8", "activation": {"rotate": []}})
    assert card.exports(quant, {**CONFIG, "model_type": "gpt2"}) == []
