"""The run folder: what a run that stops leaves, when it is continued, and when it is refused."""

from __future__ import annotations

import json
import os
import shutil
import signal

import pytest
import tiny
import torch

import edgeqat
from edgeqat import cache
from edgeqat.cli import run
from edgeqat.coreset import index_file
from edgeqat.errors import DataError, Interrupted, OutputError, StorageError, TrainingError
from edgeqat.hf import packed_folder
from edgeqat.pipeline import run as runs
from edgeqat.pipeline import text_task
from edgeqat.pipeline.pretrain import pretrain
from edgeqat.pipeline.quantize import quantize
from edgeqat.pipeline.run import RECORDS
from edgeqat.recipe.recipe import Recipe

TIMES = ("seconds", "tokens_per_second", "peak_rss_bytes")

SNAPSHOTS = ("snapshot-float.npz", "snapshot-ptq.npz")


@pytest.fixture(autouse=True)
def _own_cache(tmp_path_factory, monkeypatch):
    monkeypatch.setenv("EDGEQAT_CACHE", str(tmp_path_factory.mktemp("cache")))


@pytest.fixture
def recipe(model_folder, text_file):
    def recipe(**changes):
        train = {"steps": 6, "batch_size": 2, "log_steps": 2, "save_steps": 2}
        values = {
            "model": {"name": str(model_folder)},
            "quant": {"scheme": "w4a8kv4"},
            "data": {"root": str(text_file), "context": 32, "valid_blocks": 4},
            "train": {**train, "compare_float": False, "learning_rate": 1e-3},
        }
        for section, value in changes.items():
            values[section] = {**values.get(section, {}), **value}
        return Recipe.model_validate(values)

    return recipe


@pytest.fixture
def float_recipe(text_file):
    shape = {"vocab_size": 300, "hidden_size": 32, "layers": 1, "head_dim": 16, "ffn": 48}
    train = {"steps": 6, "batch_size": 2, "log_steps": 2, "save_steps": 2}
    return Recipe.model_validate(
        {
            "architecture": {**shape, "positions": 64, "dropout": 0.1},
            "data": {"root": str(text_file), "context": 16, "valid_blocks": 8},
            "train": {**train, "learning_rate": 1e-2},
        }
    )


def at(stage, step, action):
    """A listener that acts when a record of the stage and step comes."""

    def listener(record):
        if (record["stage"], record["step"]) == (stage, step):
            action()

    return listener


def stop():
    os.kill(os.getpid(), signal.SIGTERM)


def kill():
    """What a SIGKILL does: no code of ours runs any more."""
    raise SystemExit


def fail(kind=TrainingError):
    raise kind("stop")


def names(folder):
    return sorted(path.name for path in folder.iterdir())


def lasting(metrics):
    train = {key: value for key, value in metrics["train"].items() if key not in TIMES}
    return {**metrics, "train": train}


def terms(folder):
    lines = (folder / RECORDS).read_text(encoding="utf-8").splitlines()
    return [(json.loads(line)["step"], json.loads(line)["terms"]) for line in lines]


def test_a_run_interrupted_twice_continues_to_the_same_result(recipe, tmp_path, monkeypatch):
    chosen = recipe(train={"compare_float": True})
    expected = quantize(chosen, tmp_path / "whole")
    monkeypatch.setenv("EDGEQAT_CACHE", str(tmp_path / "cache"))
    for stage in ("float", "qat"):
        said = f"step 5 of 6; the same command continues at step 5 of {stage} .*out.run"
        with pytest.raises(Interrupted, match=said):
            quantize(chosen, tmp_path / "out", listener=at(stage, 4, stop))
        assert not (tmp_path / "out").exists()
    steps = []
    found = quantize(chosen, tmp_path / "out", listener=lambda r: steps.append(r["step"]))
    assert steps[0] == 6
    assert lasting(found) == lasting(expected)
    assert terms(tmp_path / "out") == terms(tmp_path / "whole")
    one, two = (tmp_path / name / "model.safetensors" for name in ("out", "whole"))
    assert one.read_bytes() == two.read_bytes()
    assert names(tmp_path) == ["cache", "out", "whole"]


def test_numbers_that_are_known_are_not_computed_again(recipe, tmp_path, monkeypatch, caplog):
    with pytest.raises(SystemExit):
        quantize(recipe(), tmp_path / "out", listener=at("qat", 4, kill))
    calls = []
    perplexity = text_task.perplexity
    monkeypatch.setattr(
        text_task, "perplexity", lambda *given: calls.append(1) or perplexity(*given)
    )
    with caplog.at_level("INFO", "edgeqat"):
        quantize(recipe(), tmp_path / "out")
    assert len(calls) == 1  # the packed folder's
    lines = [line for line in caplog.messages if "continuing" in line]
    assert len(lines) == 1
    assert "out.run' at step 2 of qat" in lines[0]


def test_a_float_model_continues_too(float_recipe, tmp_path):
    expected = pretrain(float_recipe, tmp_path / "whole")
    with pytest.raises(Interrupted, match="at step 5 of float"):
        pretrain(float_recipe, tmp_path / "out", listener=at("float", 4, stop))
    found = pretrain(float_recipe, tmp_path / "out")
    assert lasting(found) == lasting(expected)
    one, two = (tmp_path / name / "model.safetensors" for name in ("out", "whole"))
    assert one.read_bytes() == two.read_bytes()
    assert names(tmp_path) == ["out", "whole"]


OTHERS = {
    "train.steps: 6 there, 8 here": {"train": {"steps": 8}},
    "quant.scheme: w4a8kv4 there, w2a16kv16 here": {"quant": {"scheme": "w2"}},
    "another data": {"data": {"context": 16}},
}


def test_a_run_of_something_else_is_refused_and_replaced_on_request(recipe, tmp_path):
    with pytest.raises(Interrupted):
        quantize(recipe(), tmp_path / "out", listener=at("qat", 4, stop))
    before = sorted(tmp_path.rglob("*"))
    for said, changes in OTHERS.items():
        with pytest.raises(OutputError) as caught:
            quantize(recipe(**changes), tmp_path / "out")
        for word in (said, "out.run", "--overwrite", "--output"):
            assert word in str(caught.value)
        assert sorted(tmp_path.rglob("*")) == before
    found = quantize(recipe(train={"steps": 2}), tmp_path / "out", overwrite=True)
    assert found["train"]["steps"] == 2
    assert len(terms(tmp_path / "out")) == 1
    assert names(tmp_path) == ["out"]


def test_with_overwrite_the_same_command_continues_too(recipe, tmp_path):
    quantize(recipe(train={"steps": 1}), tmp_path / "out")
    with pytest.raises(Interrupted):
        quantize(recipe(), tmp_path / "out", overwrite=True, listener=at("qat", 4, stop))
    assert json.loads((tmp_path / "out" / "metrics.json").read_bytes())["train"]["steps"] == 1
    steps = []
    quantize(recipe(), tmp_path / "out", True, lambda record: steps.append(record["step"]))
    assert steps == [6]
    assert json.loads((tmp_path / "out" / "metrics.json").read_bytes())["train"]["steps"] == 6
    assert names(tmp_path) == ["out"]


def test_a_folder_in_the_way_is_never_replaced(recipe, tmp_path):
    (tmp_path / "out.run").mkdir()
    (tmp_path / "out.run" / "thesis.tex").touch()
    for overwrite in (False, True):
        with pytest.raises(OutputError, match=r"out\.run' is in the way"):
            quantize(recipe(), tmp_path / "out", overwrite)
    assert [path.name for path in tmp_path.rglob("*")] == ["out.run", "thesis.tex"]


def test_a_run_that_is_still_going_is_left_alone(recipe, tmp_path):
    seen = []

    def start_again():
        with pytest.raises(OutputError, match=r"another process is working in '.*out\.run'"):
            quantize(recipe(), tmp_path / "out")
        seen.append(1)

    quantize(recipe(), tmp_path / "out", listener=at("qat", 4, start_again))
    assert seen == [1]
    assert names(tmp_path) == ["out"]


def test_a_run_killed_while_it_was_being_made_or_removed_is_started_again(recipe, tmp_path):
    (tmp_path / "out.run").mkdir()
    (tmp_path / "out.run" / ".run.json").write_text("{", encoding="utf-8")
    quantize(recipe(), tmp_path / "out")
    assert names(tmp_path) == ["out"]


@pytest.mark.parametrize("moment", ["before the move", "after the move"])
def test_a_run_killed_around_the_last_move_is_finished(recipe, tmp_path, monkeypatch, moment):
    with monkeypatch.context() as patch:
        if moment == "before the move":
            patch.setattr("edgeqat.checkpoint._open_to_umask", lambda _: kill())
            patch.setattr("edgeqat.checkpoint.shutil.rmtree", lambda *_, **__: None)
        else:
            patch.setattr(runs, "_clear", lambda _: (tmp_path / "out").exists() and kill())
        with pytest.raises(SystemExit):
            quantize(recipe(), tmp_path / "out")
    assert (tmp_path / "out").exists() == (moment == "after the move")
    assert (tmp_path / "out.run").exists()
    metrics = quantize(recipe(), tmp_path / "out")
    assert metrics == json.loads((tmp_path / "out" / "metrics.json").read_bytes())
    assert names(tmp_path) == ["out"]


@pytest.mark.parametrize("kind", [KeyboardInterrupt, TrainingError, RuntimeError])
def test_a_run_that_stops_half_way_leaves_its_run_folder_only(recipe, tmp_path, kind):
    with pytest.raises((kind, Interrupted)):
        quantize(recipe(), tmp_path / "out", listener=at("qat", 2, lambda: fail(kind)))
    assert names(tmp_path) == ["out.run"]
    quantize(recipe(), tmp_path / "out")
    assert names(tmp_path) == ["out"]


@pytest.mark.parametrize("kind", [KeyboardInterrupt, DataError, RuntimeError])
def test_a_run_that_got_nowhere_leaves_nothing(recipe, tmp_path, monkeypatch, kind):
    monkeypatch.setattr(text_task, "perplexity", lambda *_: fail(kind))
    with pytest.raises((kind, Interrupted), match=r"stop"):
        quantize(recipe(), tmp_path / "deep" / "out")
    assert names(tmp_path) == []


def test_without_save_steps_only_numbers_are_kept(recipe, tmp_path):
    chosen = recipe(train={"save_steps": 0})
    with pytest.raises(Interrupted, match="continues with what is computed so far"):
        quantize(chosen, tmp_path / "out", listener=at("qat", 4, stop))
    assert names(tmp_path / "out.run") == [".lock", RECORDS, "results.json", "run.json", *SNAPSHOTS]
    quantize(chosen, tmp_path / "out")
    assert len(terms(tmp_path / "out")) == 3


def test_a_continued_run_does_not_round_its_weights_again(recipe, tmp_path, monkeypatch):
    with pytest.raises(Interrupted):
        quantize(recipe(train={"save_steps": 1}), tmp_path / "out", listener=at("qat", 2, stop))
    expected = quantize(recipe(train={"save_steps": 1}), tmp_path / "whole")["qat_start"]
    monkeypatch.setattr("edgeqat.nn.compensation.compensate", None)  # would fail
    metrics = quantize(recipe(train={"save_steps": 1}), tmp_path / "out")
    assert metrics["qat_start"] == expected


def test_a_full_disk_at_the_end_keeps_the_run(recipe, tmp_path, monkeypatch):
    def full(*_, **__):
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(packed_folder, "write", full)
        with pytest.raises(StorageError, match=r"No space left on device.*free some space"):
            quantize(recipe(), tmp_path / "out")
    assert names(tmp_path) == ["out.run"]
    assert names(tmp_path / "out.run") == [
        ".lock",
        RECORDS,
        "qat",
        "results.json",
        "run.json",
        *SNAPSHOTS,
        "start.safetensors",
    ]
    steps = []
    quantize(recipe(), tmp_path / "out", listener=lambda record: steps.append(record["step"]))
    assert steps == []
    assert names(tmp_path) == ["out"]


def test_a_stream_s_run_continues(recipe, tmp_path, text_file):
    data = {"train": str(text_file), "valid": str(text_file), "streaming": True, "root": None}
    chosen = recipe(data=data)
    expected = quantize(chosen, tmp_path / "whole")
    with pytest.raises(Interrupted):
        quantize(chosen, tmp_path / "out", listener=at("qat", 4, stop))
    assert lasting(quantize(chosen, tmp_path / "out")) == lasting(expected)


def test_another_coreset_or_teacher_under_the_same_name_is_another_run(
    recipe, tmp_path, model_folder
):
    teacher = shutil.copytree(model_folder, tmp_path / "teacher")
    chosen = recipe(coreset={"file": str(tmp_path / "idx.json")}, distill={"teacher": str(teacher)})
    samples = text_task.load_text(recipe()).samples(recipe())
    told = {"samples": len(samples), "data": samples.fingerprint()}
    index_file.write(tmp_path / "idx.json", torch.arange(8), told)
    with pytest.raises(SystemExit):
        quantize(chosen, tmp_path / "out", listener=at("qat", 4, kill))
    index_file.write(tmp_path / "idx.json", torch.arange(10), told)
    with pytest.raises(OutputError, match=r"something else \(another coreset\)"):
        quantize(chosen, tmp_path / "out")
    index_file.write(tmp_path / "idx.json", torch.arange(8), told)
    tiny.llama(seed=3).save_pretrained(teacher)
    with pytest.raises(OutputError, match=r"something else \(another teacher\)"):
        quantize(chosen, tmp_path / "out")


def test_a_float_row_of_other_code_or_a_damaged_one_is_trained_anew(recipe, tmp_path, monkeypatch):
    chosen = recipe(train={"compare_float": True})
    stages = []

    def row(output):
        stages.clear()
        listener = lambda record: stages.append(record["stage"])  # noqa: E731
        return quantize(chosen, tmp_path / output, listener=listener)["float_same_steps"]

    first = row("one")
    (kept,) = cache.folder("float_same_steps").glob("*.json")
    kept.write_text("{")
    assert row("two") == first and "float" in stages
    assert row("three") == first and "float" not in stages
    monkeypatch.setattr(edgeqat, "__version__", "0.0.1")
    assert row("four") == first and "float" in stages


@pytest.mark.parametrize("kind", ["whole", "dangling", "middle"])
def test_a_run_into_a_link_stops_continues_and_ends_where_the_link_leads(recipe, tmp_path, kind):
    disk = tmp_path / "disk"
    disk.mkdir()
    (tmp_path / "link").symlink_to(disk if kind == "middle" else disk / "out")
    output = tmp_path / "link" / "out" if kind == "middle" else tmp_path / "link"
    if kind == "whole":
        quantize(recipe(train={"steps": 1}), output)
    with pytest.raises(Interrupted, match=r"disk/out\.run"):
        quantize(recipe(), output, overwrite=True, listener=at("qat", 4, stop))
    steps = []
    quantize(recipe(), output, overwrite=True, listener=lambda r: steps.append(r["step"]))
    assert steps == [6]
    assert names(tmp_path) == ["disk", "link"] and (tmp_path / "link").is_symlink()
    assert names(disk) == ["out"]
    assert json.loads((disk / "out" / "metrics.json").read_bytes())["train"]["steps"] == 6


@pytest.mark.parametrize("killed", [False, True])
def test_a_perplexity_that_is_no_number_is_null_in_the_results(
    recipe, tmp_path, monkeypatch, killed
):
    perplexity, calls = text_task.perplexity, []

    def broken(*given):  # the packed folder's
        calls.append(1)
        return float("nan") if len(calls) == (1 if killed else 4) else perplexity(*given)

    monkeypatch.setattr(text_task, "perplexity", broken)
    if killed:
        with pytest.raises(SystemExit):
            quantize(recipe(), tmp_path / "out", listener=at("qat", 4, kill))
    quantize(recipe(), tmp_path / "out")

    def refused(name):
        raise AssertionError(name)

    text = (tmp_path / "out" / "metrics.json").read_text(encoding="utf-8")
    metrics = json.loads(text, parse_constant=refused)
    assert metrics["float" if killed else "qat"] == {"perplexity": None}
    assert run(["inspect", str(tmp_path / "out")]) == 0
