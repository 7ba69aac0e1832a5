"""Another model as teacher: it teaches as it is, or is refused before anything trains."""

from __future__ import annotations

import pytest
import tiny
import torch

from edgeqat.errors import ModelError
from edgeqat.pipeline.quantize import quantize


def test_another_model_teaches(recipe, tmp_path):
    tiny.llama(seed=5, num_hidden_layers=1).save_pretrained(tmp_path / "teacher")
    chosen = recipe(distill={"teacher": str(tmp_path / "teacher"), "weight": 1.0})
    records = []
    quantize(chosen, tmp_path / "out", listener=records.append)
    own = []
    quantize(recipe(distill={"weight": 1.0}), tmp_path / "own", listener=own.append)
    assert records[0]["terms"]["kl"] != own[0]["terms"]["kl"]


def test_a_teacher_with_padded_rows_teaches(recipe, tmp_path):
    """As the same model without them does: its further rows, though the loudest, are no tokens."""
    teacher = tiny.llama()
    teacher.resize_token_embeddings(400, mean_resizing=False)
    with torch.no_grad():
        teacher.get_input_embeddings().weight[tiny.VOCABULARY :] = 3.0
    teacher.save_pretrained(tmp_path / "teacher")
    tiny.tokenizer().save_pretrained(tmp_path / "teacher")
    padded, own = [], []
    quantize(
        recipe(distill={"teacher": str(tmp_path / "teacher")}),
        tmp_path / "out",
        False,
        padded.append,
    )
    quantize(recipe(), tmp_path / "own", False, own.append)
    assert len(own) == 2 and own[0]["terms"]["kl"] > 0
    for found, expected in zip(padded, own, strict=True):
        assert found["terms"] == pytest.approx(expected["terms"], rel=1e-4)


def test_a_teacher_with_another_tokenizer_is_refused(recipe, tmp_path):
    tiny.llama().save_pretrained(tmp_path / "teacher")
    tiny.tokenizer(tiny.VOCABULARY - 1).save_pretrained(tmp_path / "teacher")
    chosen = recipe(distill={"teacher": str(tmp_path / "teacher")})
    with pytest.raises(ModelError, match=r"distill\.teacher: .* other tokens"):
        quantize(chosen, tmp_path / "out")


def test_a_teacher_of_another_vocabulary_is_refused_before_anything_trains(recipe, tmp_path):
    tiny.llama(vocab_size=400).save_pretrained(tmp_path / "teacher")
    chosen = recipe(distill={"teacher": str(tmp_path / "teacher")}, train={"compare_float": True})
    records = []
    with pytest.raises(ModelError, match=r"distill\.teacher: .* vocabulary of 400"):
        quantize(chosen, tmp_path / "out", listener=records.append)
    assert not (tmp_path / "out").exists()
    assert records == []
