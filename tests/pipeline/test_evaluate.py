"""`edgeqat eval` on held-out text: which text, which widths."""

from __future__ import annotations

import pytest
import tiny
from marks import needs_kernels

import edgeqat
from edgeqat.cli import run
from edgeqat.data.text import load_blocks
from edgeqat.pipeline.evaluate import evaluate
from edgeqat.pipeline.quantize import quantize
from edgeqat.recipe import files as recipes
from edgeqat.recipe.quant import QuantSection


@pytest.fixture
def packed(model_folder, text_file, tmp_path):
    """A function that quantizes without training; returns the folder and its metrics."""

    def packed(data=None, **quant):
        recipe = recipes.validate(
            {
                "model": {"name": str(model_folder)},
                "quant": quant,
                "data": {**(data or {"root": str(text_file)}), "context": 32, "valid_blocks": 4},
                "train": {"steps": 0, "compare_float": False},
            }
        )
        return tmp_path / "out", quantize(recipe, tmp_path / "out")

    return packed


def test_a_file_is_evaluated_whole(packed, tmp_path):
    folder, _ = packed(scheme="w4a8kv4")
    (tmp_path / "test.txt").write_text(tiny.text(600, seed=7), encoding="utf-8")
    found = evaluate(folder, data=str(tmp_path / "test.txt"), mode="one-pass", blocks=0)
    own = recipes.load(None, {"data.root": str(tmp_path / "test.txt"), "data.context": 32})
    train, valid = load_blocks(own.data, tiny.tokenizer())
    assert found["evaluation"]["blocks"] == len(train) + len(valid)
    assert found["data"] == str(tmp_path / "test.txt")


def test_a_folder_is_evaluated_instead_of_what_the_recipe_names(packed, tmp_path, text_file):
    own = {"train": str(text_file), "valid": str(text_file)}
    folder, _ = packed(own, scheme="w4a8kv4")
    (tmp_path / "texts").mkdir()
    (tmp_path / "texts" / "valid.txt").write_text(tiny.text(600, seed=7), encoding="utf-8")
    (tmp_path / "texts" / "train.txt").write_text(tiny.text(600, seed=8), encoding="utf-8")
    whole = evaluate(folder, data=str(tmp_path / "texts" / "valid.txt"), mode="one-pass")
    found = evaluate(folder, data=str(tmp_path / "texts"), mode="one-pass")
    assert found["perplexity"] == whole["perplexity"]
    assert found["perplexity"] != evaluate(folder, mode="one-pass")["perplexity"]


def test_a_window_of_kivi_counts(packed):
    folder, metrics = packed(scheme="w16a16kv2", kv={"kivi": 32, "rotate_keys": False})
    assert evaluate(folder, mode="one-pass")["average_bits"] == metrics["average_bits"]
    context = metrics["evaluation"]["context"]
    expected = (2 * (context - 32) + 16 * 32) / context  # of 2.x bits that the meter counts
    assert metrics["average_bits"]["kv"] == pytest.approx(expected, abs=1e-4)


@needs_kernels
def test_the_engine_has_the_widths_of_the_folder(packed):
    folder, metrics = packed(scheme="w4a4kv4", adaptive={"share": 0.5})
    found = evaluate(folder, backend="native", mode="one-pass")["average_bits"]
    assert found == metrics["average_bits"]
    assert found["activations"] > 4


@needs_kernels
def test_a_saved_adaptive_folder_has_widths_only_where_they_are_measured(
    tmp_path, text_file, capsys
):
    quant = QuantSection.model_validate({"scheme": "w4a4kv4", "adaptive": {"share": 0.5}})
    model = edgeqat.prepare(tiny.llama(), quant=quant)
    edgeqat.calibrate(model, [tiny.ids(seed=3)])
    edgeqat.save(model, tmp_path / "own", tiny.tokenizer())
    given = ["eval", str(tmp_path / "own"), "--data", str(text_file), "--blocks", "2"]
    for backend, words in (("fake-quant", True), ("native", False)):
        assert run([*given, "--backend", backend]) == 0
        assert ("average bits" in capsys.readouterr().out.lower()) is words
