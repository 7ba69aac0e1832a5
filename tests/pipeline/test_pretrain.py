"""Float models from a recipe: a Hugging Face folder that the rest of the toolkit starts from."""

from __future__ import annotations

import json

import pytest
import torch

from edgeqat.data.text import held_out_blocks
from edgeqat.errors import DataError, RecipeError
from edgeqat.evaluate.perplexity import perplexity
from edgeqat.hf import float_model
from edgeqat.pipeline.pretrain import pretrain
from edgeqat.pipeline.quantize import quantize
from edgeqat.recipe import files as recipes
from edgeqat.recipe.recipe import Recipe


@pytest.fixture
def recipe(text_file):
    def recipe(**architecture):
        shape = {"vocab_size": 300, "hidden_size": 32, "layers": 1, "head_dim": 16, "ffn": 48}
        return Recipe.model_validate(
            {
                "description": "a tiny model",
                "architecture": {**shape, "positions": 64, **architecture},
                "data": {"root": str(text_file), "context": 16, "valid_blocks": 8},
                "train": {"steps": 3, "batch_size": 2, "log_steps": 1, "learning_rate": 1e-2},
                "distill": {"weight": 0},
            }
        )

    return recipe


@pytest.mark.parametrize("tied", [True, False])
def test_the_folder_is_a_model_of_the_recipe_s_shape(recipe, tmp_path, tied):
    metrics = pretrain(recipe(tied=tied, dtype="float16"), tmp_path / "out")
    model = float_model.load_model(str(tmp_path / "out"))
    assert model.config.vocab_size == 300
    assert model.config.tie_word_embeddings == tied
    assert (model.lm_head.weight is model.model.embed_tokens.weight) == tied
    assert metrics["parameters"] == model.num_parameters()
    tokenizer = float_model.load_tokenizer(str(tmp_path / "out"))
    text = "the old river runs past a mill"
    assert tokenizer.decode(tokenizer(text)["input_ids"]) == text
    assert len(tokenizer) <= 300
    on_disk = json.loads((tmp_path / "out" / "metrics.json").read_text(encoding="utf-8"))
    assert on_disk == metrics
    again = recipes.load(tmp_path / "out" / "recipe.resolved.yaml")
    assert again.architecture.tied == tied


def test_every_file_can_be_read_by_whom_the_umask_allows(recipe, tmp_path):
    pretrain(recipe(), tmp_path / "out")
    (tmp_path / "plain").touch()
    mode = (tmp_path / "plain").stat().st_mode
    assert [path.name for path in (tmp_path / "out").iterdir() if path.stat().st_mode != mode] == []


def test_it_trains(recipe, tmp_path):
    records = []
    chosen = recipe()
    chosen.train.steps = 30
    metrics = pretrain(chosen, tmp_path / "out", listener=records.append)
    assert records[-1]["terms"]["loss"] < records[0]["terms"]["loss"]
    assert metrics["float"]["perplexity"] < 300


def test_what_it_writes_can_be_quantized(recipe, tmp_path):
    chosen = recipe()
    pretrain(chosen, tmp_path / "float")
    values = {"model": {"name": str(tmp_path / "float")}, "data": chosen.data.model_dump()}
    quantization = Recipe.model_validate({**values, "train": {"steps": 1, "batch_size": 2}})
    metrics = quantize(quantization, tmp_path / "packed")
    assert metrics["qat"]["perplexity"] > 1


def test_the_same_seed_writes_the_same_weights(recipe, tmp_path):
    for name in ("one", "two"):
        pretrain(recipe(), tmp_path / name)
    one, two = (float_model.load_model(str(tmp_path / name)) for name in ("one", "two"))
    assert all(torch.equal(p, q) for p, q in zip(one.parameters(), two.parameters(), strict=True))


def test_a_recipe_without_architecture_is_refused(tmp_path):
    with pytest.raises(RecipeError, match="architecture: the recipe has none"):
        pretrain(Recipe(), tmp_path / "out")
    assert list(tmp_path.iterdir()) == []


def test_missing_text_leaves_nothing(recipe, tmp_path):
    chosen = recipe()
    chosen.data.root = str(tmp_path / "missing.txt")
    with pytest.raises(DataError, match="does not exist"):
        pretrain(chosen, tmp_path / "out")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("section", "values", "field"),
    [
        ("train", {"method": "lowrank"}, "train.method"),
        ("distill", {"teacher": "other"}, "distill.teacher"),
        ("guide", {"entropy": {"weight": 1.0}}, "guide"),
        ("correct", {"weight": 1.0}, "correct.weight"),
        ("data", {"context": 65}, "data.context: 65 exceeds the 64 positions"),
    ],
)
def test_what_it_would_not_heed_is_refused(recipe, tmp_path, section, values, field):
    given = recipe().model_dump()
    given[section] |= values
    with pytest.raises(RecipeError, match=field):
        pretrain(Recipe.model_validate(given), tmp_path / "out")
    assert list(tmp_path.iterdir()) == []


def test_the_number_is_that_of_the_written_weights(recipe, tmp_path):
    chosen = recipe(dtype="bfloat16")
    metrics = pretrain(chosen, tmp_path / "out")
    model = float_model.load_model(str(tmp_path / "out")).float()
    valid = held_out_blocks(chosen.data, float_model.load_tokenizer(str(tmp_path / "out")))
    assert perplexity(model, valid) == metrics["float"]["perplexity"]
