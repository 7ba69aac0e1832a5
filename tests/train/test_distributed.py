"""Two processes (gloo) train like one at the same global batch; one of them writes."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from worker import own_text

import edgeqat
from edgeqat.coreset.float_outputs import float_outputs
from edgeqat.coreset.selection import Selection
from edgeqat.hf import float_model
from edgeqat.pipeline import self_text
from edgeqat.pipeline.preparation import prepared
from edgeqat.pipeline.quantize import quantize
from edgeqat.pipeline.text_task import load_text
from edgeqat.recipe import files as recipes
from edgeqat.recipe.data import CoresetSection
from edgeqat.recipe.recipe import Recipe
from edgeqat.train.objective import Objective
from edgeqat.train.optim import make_optimizer

pytestmark = pytest.mark.slow

STEPS = 4


def recipe(model_folder, text_file, batch_size):
    train = {"steps": STEPS, "log_steps": 1, "save_steps": 4, "compare_float": False}
    rates = {"learning_rate": 3e-4, "scale_learning_rate": 1e-4}
    return Recipe.model_validate(
        {
            "model": {"name": str(model_folder)},
            "quant": {"scheme": "w4a8kv4"},
            "data": {"root": str(text_file), "context": 32, "valid_blocks": 4},
            "train": {"batch_size": batch_size, **train, **rates},
            "distill": {"weight": 0.5},  # pure KL is near 0 here: a flipped code is 1% of it
        }
    )


@pytest.fixture(scope="module")
def folder(tmp_path_factory, model_folder, text_file):
    """What two processes left, with what they printed in `log`."""
    folder = tmp_path_factory.mktemp("two")
    chosen = recipe(model_folder, text_file, 2)
    (folder / "two.yaml").write_text(recipes.dump(chosen), encoding="utf-8")
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2"]
    done = subprocess.run(
        [*launch, str(Path(__file__).with_name("worker.py")), str(folder)],
        capture_output=True,
        text=True,
        timeout=300,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    assert done.returncode == 0, done.stderr
    (folder / "log").write_text(done.stdout + done.stderr, encoding="utf-8")
    return folder


@pytest.fixture(scope="module")
def seen(folder):
    return [json.loads((folder / f"seen-{rank}.json").read_bytes()) for rank in (0, 1)]


def losses(folder):
    lines = (folder / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    return [json.loads(line)["terms"]["loss"] for line in lines]


def test_two_processes_train_like_one(folder, model_folder, text_file, tmp_path):
    metrics = quantize(recipe(model_folder, text_file, 4), tmp_path / "one")
    expected = losses(tmp_path / "one")
    assert len(expected) == STEPS
    assert expected[-1] != pytest.approx(expected[0], rel=1e-3)
    assert losses(folder / "two") == pytest.approx(expected, rel=1e-4)
    found = json.loads((folder / "two" / "metrics.json").read_bytes())
    for row in ("float", "ptq", "qat"):
        assert found[row]["perplexity"] == pytest.approx(metrics[row]["perplexity"], rel=1e-4)


def test_one_process_writes_and_speaks(folder, seen):
    assert [entry["code"] for entry in seen] == [0, 0]
    assert [entry["count"] for entry in seen] == [2, 2]
    assert not (folder / "two.run").exists()
    edgeqat.load(folder / "two")
    said = (folder / "log").read_text(encoding="utf-8")
    assert said.count("wrote ") == 1
    assert said.count("continuing the unfinished run") == 1


def test_a_sharded_step_is_a_plain_one_and_its_folder_loads(folder, seen, model_folder, text_file):
    assert seen[0]["losses"] == seen[1]["losses"]
    assert seen[0]["spread"]
    assert seen[0]["scales"] > 2 * 7
    chosen = recipe(model_folder, text_file, 4)
    inputs = load_text(chosen)
    model = prepared(inputs, chosen, chosen.quant)
    objective = Objective(chosen.distill, float_model.load_model(str(model_folder)))
    optimizer = make_optimizer(model, chosen.train)
    for batch, found in zip(inputs.train.ids.split(4), seen[0]["losses"], strict=False):
        loss = objective(model, {"input_ids": batch})["loss"]
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        assert found == pytest.approx(loss.item(), rel=1e-4)
    packed = edgeqat.load(folder / "sharded")
    with torch.no_grad():
        expected = model.eval()(inputs.valid.ids).logits
        assert (packed(inputs.valid.ids).logits - expected).abs().mean() < 0.02 * expected.std()


def test_two_processes_score_what_one_does(seen, model_folder, text_file, monkeypatch, tmp_path):
    monkeypatch.setenv("EDGEQAT_CACHE", str(tmp_path))
    chosen = recipe(model_folder, text_file, 4)
    inputs = load_text(chosen)
    section = CoresetSection(share=0.3, selector="res")
    selection = Selection(section, inputs.samples(chosen), inputs.model, 0)
    selection.outputs = float_outputs(inputs.model, inputs.samples(chosen), "one", 16)
    expected = selection(prepared(inputs, chosen, chosen.quant), 0.0, 0).indices.tolist()
    assert seen[0]["coreset"] == seen[1]["coreset"] == expected


def test_two_processes_write_different_parts_of_one_text(folder, seen, monkeypatch, tmp_path):
    monkeypatch.setenv("EDGEQAT_CACHE", str(tmp_path))
    monkeypatch.setattr(self_text, "BATCH", 4)
    monkeypatch.setattr(self_text, "LENGTH", 40)
    first, second = (entry["own"] for entry in seen)
    assert first["text"] == second["text"]
    assert first["numbers"] == list(range(0, 2 * len(first["numbers"]), 2))
    assert second["numbers"] == [number + 1 for number in first["numbers"]]
    alone = self_text.with_self_text(own_text(folder / "two.yaml"))
    assert Path(alone.data.train).read_text(encoding="utf-8") == first["text"]
