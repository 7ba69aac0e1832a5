"""Another model as teacher: it teaches as it is, or is refused before anything trains."""

from __future__ import annotations

import os
import shutil

import pytest
import tiny
import torch

from edgeqat.coreset import float_outputs
from edgeqat.errors import Interrupted, ModelError, RecipeError, StorageError
from edgeqat.pipeline.load import load_task
from edgeqat.pipeline.preparation import prepared, trainable
from edgeqat.pipeline.quantize import quantize
from edgeqat.pipeline.teaching import teaching
from edgeqat.train.trainer import QATTrainer


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


def _records(chosen, output):
    records = []
    quantize(chosen, output, listener=records.append)
    return [record["terms"] for record in records]


def test_a_teacher_whose_every_token_is_kept_teaches_as_one_in_memory_does(recipe, tmp_path):
    four = {"train_blocks": 4}  # as many as two steps see
    there = _records(recipe(data=four, distill={"weight": 0.7}), tmp_path / "there")
    kept = {"weight": 0.7, "kept": tiny.VOCABULARY}
    away = _records(recipe(data=four, distill=kept), tmp_path / "away")
    assert len(away) == 2
    for found, expected in zip(away, there, strict=True):
        assert found == pytest.approx(expected, rel=1e-3)


def test_a_teacher_whose_outputs_are_kept_is_not_in_memory(recipe):
    task = load_task(recipe())
    data, objective = teaching(task, recipe(distill={"kept": 8}))
    assert not hasattr(task, "model") and objective.teacher is None
    assert len(data) == 4 and data[3]["sample"] == 3  # two steps of two blocks
    task.bring_back()
    assert task.divergence(task.model) == pytest.approx(0, abs=1e-6)


def test_outputs_are_kept_once(recipe, tmp_path, monkeypatch, caplog):
    caplog.set_level("INFO", "edgeqat")
    monkeypatch.setenv("EDGEQAT_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(float_outputs, "EXACT_CLASSES", 100)
    for name in ("a", "b"):
        quantize(recipe(distill={"kept": 8}), tmp_path / name)
    assert caplog.text.count("float outputs of 4 samples computed") == 1
    assert (tmp_path / "a" / "model.safetensors").read_bytes() == (
        tmp_path / "b" / "model.safetensors"
    ).read_bytes()


def test_a_stopped_run_without_a_teacher_ends_like_the_undisturbed_one(recipe, tmp_path):
    train = {"steps": 3, "accumulation": 2, "save_steps": 1}
    chosen = recipe(distill={"kept": 8}, train=train)

    def stop(record):
        raise Interrupted("stopped")

    with pytest.raises(Interrupted):
        quantize(chosen, tmp_path / "out", listener=stop)
    weights = []
    for name in ("out", "whole"):
        quantize(chosen, tmp_path / name)
        weights.append((tmp_path / name / "model.safetensors").read_bytes())
    assert weights[0] == weights[1]


def test_a_disk_without_room_for_outputs_is_told_how_much_they_take(recipe, tmp_path, monkeypatch):
    monkeypatch.setenv("EDGEQAT_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(shutil, "disk_usage", lambda _: shutil._ntuple_diskusage(10, 9, 1000))
    with pytest.raises(StorageError, match=r"distill\.kept: .* take 0\.00 GB .* EDGEQAT_CACHE"):
        quantize(recipe(distill={"kept": 8}), tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_outputs_that_find_no_place_are_refused_and_nothing_is_left(recipe, tmp_path, monkeypatch):
    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setenv("EDGEQAT_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(os, "posix_fallocate", full)
    with pytest.raises(StorageError, match=r"distill\.kept: .* cannot be kept in .*EDGEQAT_CACHE"):
        quantize(recipe(distill={"kept": 8}), tmp_path / "out")
    assert not (tmp_path / "out").exists()
    assert list((tmp_path / "cache" / "outputs").iterdir()) == []


def test_most_probable_tokens_teach_almost_what_all_do(recipe, monkeypatch, tmp_path):
    monkeypatch.setenv("EDGEQAT_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(float_outputs, "EXACT_CLASSES", 100)
    task = load_task(recipe())
    model, all_blocks = prepared(task, recipe(), recipe().quant), task.train
    task.train = all_blocks.evenly(4)
    _, whole = teaching(task, recipe())
    expected = whole(model, task.train[slice(4)])["kl"].item()
    found = []
    for kept in (8, 64, tiny.VOCABULARY):
        task.train = all_blocks
        data, objective = teaching(task, recipe(distill={"kept": kept}))
        found.append(objective(model, data[slice(4)])["kl"].item())
        task.bring_back()
    assert found[0] < found[1] < found[2] == pytest.approx(expected, rel=0.02)  # float16


@pytest.mark.parametrize(
    ("section", "values", "field"),
    [
        ("distill", {"temperature": 2.0}, r"distill\.temperature"),
        ("distill", {"weight": 0.0}, r"distill\.kept"),
        ("correct", {"weight": 0.1}, r"correct\.weight"),
        ("guide", {"entropy": {"weight": 0.1, "form": "gap"}}, "guide"),
    ],
)
def test_what_needs_a_teacher_in_every_step_is_refused(recipe, section, values, field):
    changes = {"distill": {"kept": 8}}
    changes[section] = {**changes.get(section, {}), **values}
    with pytest.raises(ValueError, match=field):
        recipe(**changes)


def test_nothing_is_kept_of_a_stream(recipe, text_file, tmp_path):
    data = {"streaming": True, "valid": str(text_file)}
    with pytest.raises(RecipeError, match=r"distill\.kept: .* stream"):
        quantize(recipe(distill={"kept": 8}, data=data), tmp_path / "out")


def test_scales_alone_are_trained(recipe):
    chosen = recipe(train={"method": "scales", "learning_rate": 1e-3, "scale_learning_rate": 1e-3})
    task = load_task(chosen)
    model = trainable(prepared(task, chosen, chosen.quant), chosen)
    trained = {name for name, p in model.named_parameters() if p.requires_grad}
    assert any(name.endswith("weight_quantizer.scale") for name in trained)
    assert any("norm" in name for name in trained)
    assert not any(name.endswith(("proj.weight", "embed_tokens.weight")) for name in trained)
    before = {name: p.clone() for name, p in model.named_parameters()}
    data, objective = teaching(task, chosen)
    QATTrainer(model, chosen, data, objective).run()
    moved = {n for n, p in model.named_parameters() if not torch.equal(p, before[n])}
    assert moved and moved <= trained
