"""The embedded demo: its text is read from the running Python, its model is as its recipe says."""

from __future__ import annotations

import re
import sys

import pytest
import torch

from edgeqat.data.documents import documents
from edgeqat.demo import model, text
from edgeqat.errors import DataError, ModelError
from edgeqat.hf import float_model
from edgeqat.recipe import files as recipes

pytest.importorskip("pydoc_data.topics", reason="a minimal Python without help topics")
WEIGHTS = model.__file__.removesuffix("model.py") + "weights"


def runs(pages, length=8):
    """All runs of eight words."""
    found = set()
    for page in pages:
        words = re.findall(r"\w+", page.lower())
        found.update(tuple(words[i : i + length]) for i in range(len(words) - length + 1))
    return found


def test_the_demo_text_is_long_enough():
    assert sum(map(len, text.topics("train"))) > 100_000
    assert sum(map(len, text.topics("valid"))) > 10_000


def test_held_out_topics_are_not_trained_on():
    assert not set(text.HELD_OUT) & set(text.TRAIN)
    held = runs(text.topics("valid"))
    shared = held & runs(text.topics("train"))
    assert len(shared) < 0.02 * len(held)  # traceback headers and stock phrases of the manual


def test_the_demo_is_a_source_of_documents():
    assert list(documents("demo")) == list(text.topics("train"))
    assert list(documents("demo#valid")) == list(text.topics("valid"))


def test_a_python_without_topics_is_told_so(monkeypatch):
    monkeypatch.setitem(sys.modules, "pydoc_data", None)
    with pytest.raises(DataError, match=r"pydoc_data\.topics"):
        list(text.topics("train"))
    with pytest.raises(DataError, match="demo#other"):
        list(text.topics("other"))


def test_a_missing_demo_model_is_one_line(monkeypatch, tmp_path):
    monkeypatch.setattr(model, "__file__", str(tmp_path / "model.py"))
    with pytest.raises(ModelError, match="reinstall"):
        model.folder()


@pytest.fixture
def demo():
    return float_model.load_model("demo")


def test_the_demo_model_has_the_shape_of_its_recipe(demo):
    shape = recipes.load("demo-float").architecture
    config = demo.config
    assert config.vocab_size == shape.vocab_size
    assert config.hidden_size == shape.hidden_size
    assert config.intermediate_size == shape.ffn
    assert config.num_hidden_layers == shape.layers
    assert config.num_attention_heads == shape.heads
    assert config.num_key_value_heads == shape.kv_heads
    assert config.head_dim == shape.head_dim
    assert config.max_position_embeddings == shape.positions
    assert config.tie_word_embeddings == shape.tied
    assert 1.0e6 < demo.num_parameters() < 1.4e6


def test_the_demo_is_small_enough_to_ship(demo):
    files = [path for path in model.folder().rglob("*") if path.is_file()]
    assert sum(path.stat().st_size for path in files) < 4_000_000
    assert not [path for path in files if path.suffix in (".bin", ".pt", ".pkl")]


def test_the_demo_has_learned_its_text(demo):
    tokenizer = float_model.load_tokenizer("demo")
    page = next(iter(text.topics("valid")))
    ids = tokenizer(page, return_tensors="pt")["input_ids"][:, :256]
    with torch.no_grad():
        loss = demo.eval()(input_ids=ids, labels=ids).loss
    assert loss.item() < 5.0  # log(1024) = 6.9 is chance
