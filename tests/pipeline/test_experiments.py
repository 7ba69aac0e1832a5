"""The experiment queue: every run is valid, finished ones are skipped, the table adds up."""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

import pytest
from scripts import FOLDER, loaded, needs_scripts

from edgeqat.recipe import files as recipes

pytestmark = needs_scripts


@pytest.fixture(scope="module")
def script():
    with loaded("experiments") as module:
        yield module


@pytest.fixture(scope="module")
def runs(script):
    return list(script.queue(script.LIST))


def test_every_run_is_a_valid_recipe_of_its_own(script, runs):
    resolved = [recipes.load(script.RECIPE, {**run.settings, "seed": run.seed}) for run in runs]
    assert len({run.name for run in runs}) == len(runs)
    assert len({recipe.model_dump_json() for recipe in resolved}) == len(runs)
    steps = {(run.group, recipe.train.steps) for run, recipe in zip(runs, resolved, strict=True)}
    assert steps == {("a-paper", 100), ("b-deployed", 100), ("c-adaptive", 60), ("d-kv", 100)}


def test_the_mandatory_comparisons_are_there(runs):
    names = {run.name for run in runs}
    for seed in (0, 1, 2):
        for row in ("kd", "entropy", "distribution", "both"):
            assert {
                f"a-paper-w4a8kv4-{row}-s{seed}",
                f"a-paper-w4a4kv4-{row}-s{seed}",
                f"b-deployed-w3a4kv3-{row}-s{seed}",
            } <= names
        for row in ("importance", "random", "reversed", "layers", "uniform-4"):
            assert {f"c-adaptive-{s}-{row}-s{seed}" for s in ("w4a4kv4", "w4a8kv2")} <= names
    kv = {f"d-kv-w16a16kv{bits}-{row}-s0" for bits in (4, 3, 2) for row in ("rotated", "plain")}
    assert kv <= names


def test_the_command_is_a_quantize_that_reads_the_settings(script, runs, tmp_path):
    run = next(run for run in runs if run.name == "a-paper-w4a4kv4-both-s1")
    command = script.command(run, "MODEL", tmp_path)
    sets = dict(recipes.parse_set(word[6:]) for word in command if word.startswith("--set="))
    assert sets == run.settings
    assert command[command.index("--output") + 1].endswith(run.name)
    assert command[command.index("--seed") + 1] == "1"


def told(folder, runs, name):
    """The settings of a run, as the queue leaves them beside it."""
    (run,) = [run for run in runs if run.name == name]
    (folder / f"{name}.json").write_text(json.dumps(run.settings), encoding="utf-8")


def write(folder, runs, name, value, kl=0.1):
    (folder / name).mkdir(parents=True)
    rows = {"float": 100.0, "qat": value, "qat_start": 2 * value}
    metrics = {row: {"perplexity": perplexity} for row, perplexity in rows.items()}
    metrics["average_bits"] = {"activations": 4.0, "kv": 3.5}
    (folder / name / "metrics.json").write_text(json.dumps(metrics), encoding="utf-8")
    told(folder, runs, name)
    compared = json.dumps({"kl": {"mean": kl, "p99": 9.0}})
    (folder / f"{name}.eval.json").write_text(compared, encoding="utf-8")


def test_the_table_pairs_seeds_and_leaves_out_what_is_not_done(script, runs, tmp_path):
    for seed, kd, both in ((0, 121.0, 110.0), (1, 144.0, 120.0)):
        write(tmp_path, runs, f"b-deployed-w3a4kv3-kd-s{seed}", kd)
        write(tmp_path, runs, f"b-deployed-w3a4kv3-both-s{seed}", both, kl=0.08)
    lines = script.table(runs, tmp_path).splitlines()[2:]
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]
    assert [row[0] for row in rows] == ["b-deployed-w3a4kv3-kd", "b-deployed-w3a4kv3-both"]
    assert rows[0][1:5] == ["2", "132.50", "16.26", "+32.50%"]
    assert rows[0][8] == "-"
    assert rows[1][7] == "4.00 / 3.50"
    assert rows[1][8] == "+50% (sd 0)"  # log 1.1 is half of log 1.21, log 1.2 of log 1.44
    assert rows[0][9:] == ["0.1000", "-"]
    assert rows[1][9:] == ["0.0800", "+20% (sd 0)"]


def test_the_table_names_runs_of_other_settings(script, runs, tmp_path, capsys):
    for row in ("kd", "both"):
        write(tmp_path, runs, f"b-deployed-w3a4kv3-{row}-s0", 121.0)
    (tmp_path / "b-deployed-w3a4kv3-both-s0.json").write_text('{"train.steps": 7}')
    lines = script.table(runs, tmp_path).splitlines()[2:]
    assert [line.split()[1] for line in lines] == ["b-deployed-w3a4kv3-kd"]
    assert "other settings" in (said := capsys.readouterr().err) and "w3a4kv3-both-s0" in said


def test_a_queue_that_is_killed_knows_the_run_it_left(script, runs, tmp_path, monkeypatch):
    def killed(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(script, "call", killed)
    with pytest.raises(KeyboardInterrupt):
        script.execute(runs[0], argparse.Namespace(model="MODEL", out=tmp_path, threads=1))
    assert not script.has_others(runs[0], tmp_path)
    assert script.has_others(runs[1], tmp_path)


def test_runs_not_compared_yet_have_no_kl(script, runs, tmp_path):
    for name in ("kd-s0", "kd-s1", "both-s0", "both-s1"):
        write(tmp_path, runs, f"b-deployed-w3a4kv3-{name}", 121.0)
        (tmp_path / f"b-deployed-w3a4kv3-{name}.eval.json").unlink()
    lines = script.table(runs, tmp_path).splitlines()[2:]
    assert [line.split("|")[-3:-1] for line in lines] == [[" nan ", " - "]] * 2


def test_finished_runs_are_skipped(script, runs, tmp_path, monkeypatch, capsys):
    write(tmp_path, runs, "d-kv-w16a16kv4-plain-s0", 101.0)
    arguments = ["experiments", "MODEL", "--only", "d-kv-w16a16kv4-*", "--out", str(tmp_path)]
    monkeypatch.setattr(sys, "argv", arguments)
    ran = []
    monkeypatch.setattr(script, "execute", lambda run, _: ran.append(run.name) or True)
    compared = []
    monkeypatch.setattr(script, "call", lambda words, run, _: compared.append(words) or True)
    (plain,) = [run for run in runs if run.name == "d-kv-w16a16kv4-plain-s0"]
    settings = tmp_path / f"{plain.name}.json"
    assert script.main() == 0
    assert ran == ["d-kv-w16a16kv4-rotated-s0"]
    (words,) = compared  # only what was not yet
    start = words.index("eval")
    assert words[start : start + 4] == ["eval", str(tmp_path / ran[0]), "--against", "MODEL"]
    assert "plain-s0: done\n" in capsys.readouterr().out
    settings.write_text(json.dumps({**plain.settings, "train.steps": 7}))
    assert script.main() == 1
    assert "plain-s0: done with other settings; remove" in capsys.readouterr().out


def test_a_run_made_anew_is_compared_anew(script, runs, tmp_path, monkeypatch):
    (run,) = [run for run in runs if run.name == "d-kv-w16a16kv4-plain-s0"]
    before = tmp_path / f"{run.name}.eval.json"
    before.write_text("{}")
    called = []
    monkeypatch.setattr(script, "call", lambda words, *_: called.append(words) or True)
    options = argparse.Namespace(model="MODEL", out=tmp_path, threads=1)
    assert script.execute(run, options)
    assert script.compare(run, options)
    assert len(called) == 2
    assert "--against" in called[1]


@pytest.fixture(scope="module")
def image_runs(script):
    return list(script.queue(FOLDER / "quarc.yaml"))


def test_the_runs_of_coresets_differ_in_selection_and_correction_only(script, image_runs):
    resolved = {
        run.name: recipes.load(run.recipe, {**run.settings, "seed": run.seed}) for run in image_runs
    }
    assert len(resolved) == len(image_runs)
    assert len({recipe.model_dump_json() for recipe in resolved.values()}) == len(image_runs)
    assert len({recipe.train.model_dump_json() for recipe in resolved.values()}) == 1
    for row in ("quarc", "acs", "random", "acs-clc", "random-clc", "res"):
        assert {f"main-w2a32-{row}-s{seed}" for seed in (0, 1, 2)} <= set(resolved)
    command = script.command(image_runs[0], "float.safetensors", Path("runs"))
    assert command[command.index("--weights") + 1] == "float.safetensors"
    assert command[command.index("--recipe") + 1] == "mobilenetv2-cifar100"


def test_the_runs_of_text_coresets_train_on_as_many_blocks(script):
    runs = list(script.queue(FOLDER / "text_coresets.yaml"))
    resolved = [recipes.load(run.recipe, {**run.settings, "seed": run.seed}) for run in runs]
    assert len({recipe.model_dump_json() for recipe in resolved}) == len(runs) == 18
    assert len({recipe.train.model_dump_json() for recipe in resolved}) == 1
    assert {recipe.coreset.share for recipe in resolved} == {None, 0.1}


def test_the_table_of_images_counts_points(script, image_runs, tmp_path):
    train = {"samples_per_second": 100.0, "seconds": 60, "selection_seconds": 5.0}
    for row, value in (("quarc", 40.0), ("acs", 31.5)):
        folder = tmp_path / f"main-w2a32-{row}-s0"
        folder.mkdir()
        top = {"float": 67.8, "ptq": 2.0, "qat": value}
        metrics = {name: {"top1": number} for name, number in top.items()} | {"train": train}
        (folder / "metrics.json").write_text(json.dumps(metrics), encoding="utf-8")
        told(tmp_path, image_runs, folder.name)
    lines = script.table(image_runs, tmp_path).splitlines()[2:]
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]
    assert rows[0][:7] == ["main-w2a32-quarc", "1", "40.00", "-", "67.80", "2.00", "+8.50"]
    assert rows[1][6] == "-" and rows[1][7:] == ["100", "60", "5"]
