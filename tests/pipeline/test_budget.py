"""`train.minutes`: a run that ends in time, and trains only where it helps."""

from __future__ import annotations

import pytest
import yaml

from edgeqat.cli import run as cli
from edgeqat.errors import Interrupted, RecipeError, UsageError
from edgeqat.nn.linear import QuantEmbedding, QuantLinear
from edgeqat.pipeline import budget
from edgeqat.pipeline.quantize import quantize
from edgeqat.pipeline.speed import step_seconds
from edgeqat.pipeline.text_task import TextTask, load_text
from edgeqat.recipe import files as recipes


@pytest.fixture(autouse=True)
def known_speed(monkeypatch):
    """A step takes a tenth of a second, whatever the machine."""
    attempt = budget.Budget._try
    monkeypatch.setattr(budget, "step_seconds", lambda *_: 0.1)
    monkeypatch.setattr(budget, "NOT_NEEDED", (-1.0, 0.01))  # random models lose little
    monkeypatch.setattr(budget.Budget, "_try", lambda *given: attempt(*given) and 0.1)


def answer(monkeypatch, *divergences):
    """KLs of the start, of two trials, of the end."""
    answers = iter(divergences)
    monkeypatch.setattr(TextTask, "divergence", lambda *_: next(answers))


def resolved(folder):
    return yaml.safe_load((folder / "recipe.resolved.yaml").read_text(encoding="utf-8"))


def test_steps_rate_and_text_are_chosen_and_the_result_says_which(recipe, tmp_path, monkeypatch):
    answer(monkeypatch, 0.5, 0.45, 0.4, 0.3)
    chosen = recipe(quant={"scheme": "w2a8kv2"}, train={"minutes": 0.2, "compare_float": True})
    metrics = quantize(chosen, tmp_path / "out")
    train = resolved(tmp_path / "out")["train"]
    assert "minutes" not in train and train["steps"] >= 1
    assert train["blocks"]["passes"] == 2
    assert len(metrics["trials"]) == 2
    best = min(metrics["trials"], key=metrics["trials"].get)
    assert train["learning_rate"] == float(best)
    assert metrics["kept_training"]
    assert metrics["float_same_steps"] is None


def test_a_large_model_trains_in_small_parts(recipe, tmp_path, monkeypatch):
    monkeypatch.setattr(budget, "_LARGE", 0)
    monkeypatch.setattr(budget, "_PART_TOKENS", 32)
    answer(monkeypatch, 0.5, 0.45, 0.4, 0.3)
    data, train = {"context": 16}, {"minutes": 0.2, "batch_size": 4, "accumulation": 3}
    metrics = quantize(recipe(data=data, train=train), tmp_path / "out")
    found = resolved(tmp_path / "out")["train"]
    assert (found["batch_size"], found["accumulation"], found["bf16_states"]) == (2, 6, True)
    assert metrics["train"]["steps"] == found["steps"] >= 1


def test_a_start_that_loses_nothing_is_not_trained(recipe, tmp_path, monkeypatch):
    monkeypatch.setattr(budget, "NOT_NEEDED", (0.005, 0.01))
    chosen = recipe(quant={"scheme": "w8a8kv8"}, train={"minutes": 0.2})
    metrics = quantize(chosen, tmp_path / "out")
    assert metrics["train"]["steps"] == 0 and metrics["qat"] == metrics["qat_start"]


def test_too_few_minutes_are_refused_with_enough_of_them(recipe, tmp_path):
    with pytest.raises(UsageError, match=r"train.minutes: 0.001 are too few .* at least 1,"):
        quantize(recipe(train={"minutes": 0.001}), tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_images_and_two_lengths_are_refused(recipe, images, floating, tmp_path):
    values = {"train.minutes": 1, "data.root": images, "model.name": str(floating)}
    values["quant.scheme"] = "w4a8"
    with pytest.raises(UsageError, match="language models"):
        quantize(recipes.load(None, values), tmp_path / "out")
    with pytest.raises(RecipeError, match=r"train.minutes: 1 and train.steps: 2 both say"):
        recipes.load("demo", {"train.minutes": 1, "train.steps": 2})


def test_steps_of_the_command_line_replace_minutes_of_a_recipe(tmp_path):
    file = tmp_path / "r.yaml"
    file.write_text("train: {minutes: 5}\n")
    assert recipes.load(file, {"train.steps": 7}).train.minutes is None
    assert recipes.load(file, {}).train.minutes == 5


def test_settings_are_chosen_on_text_that_is_not_trained_on(recipe):
    task = load_text(recipe())
    every = {tuple(row) for row in task.train.ids.tolist()}
    task.keep_apart()
    kept = {tuple(row) for row in task.train.ids.tolist()}
    apart = {tuple(row) for row in task.apart.ids.tolist()}
    assert apart and not apart & kept and apart | kept == every


def test_embedding_and_head_alone_are_not_trained(recipe, tmp_path, monkeypatch):
    monkeypatch.setattr(budget, "step_seconds", step_seconds)
    answer(monkeypatch, 0.5, 0.45, 0.4, 0.3)
    trained = []

    def attempt(self, recipe, model, *_):
        layers = [m for m in model.modules() if isinstance(m, QuantLinear | QuantEmbedding)]
        trained.extend((type(m), m.weight.requires_grad) for m in layers)
        return 60.0  # seconds of a step: few fit

    monkeypatch.setattr(budget.Budget, "_try", attempt)
    quantize(recipe(quant={"scheme": "w2a8kv2"}, train={"minutes": 5}), tmp_path / "out")
    assert set(trained) == {(QuantLinear, True), (QuantEmbedding, False), (QuantLinear, False)}
    assert trained.count((QuantLinear, False)) == 2  # the head, tied, in each trial
    assert resolved(tmp_path / "out")["train"]["embedding"] is False


def test_training_that_did_not_help_is_dropped(recipe, tmp_path, monkeypatch):
    answer(monkeypatch, 0.5, 0.4, 0.45, 0.6)
    chosen = recipe(quant={"scheme": "w2a8kv2"}, train={"minutes": 0.2})
    metrics = quantize(chosen, tmp_path / "out")
    assert not metrics["kept_training"]
    assert metrics["qat"]["perplexity"] == pytest.approx(metrics["qat_start"]["perplexity"])


def test_trials_that_do_not_help_leave_the_start(recipe, tmp_path, monkeypatch):
    answer(monkeypatch, 0.5, 0.6, 0.55)
    chosen = recipe(quant={"scheme": "w2a8kv2"}, train={"minutes": 0.2})
    metrics = quantize(chosen, tmp_path / "out")
    assert metrics["train"]["steps"] == 0 and metrics["qat"] == metrics["qat_start"]


def test_a_stopped_run_goes_on_with_what_was_decided(recipe, tmp_path, monkeypatch):
    chosen = recipe(quant={"scheme": "w2a8kv2"}, train={"minutes": 0.2, "save_steps": 1})

    def stop(record):
        if record["stage"] == "qat" and record["step"] >= 1:
            raise KeyboardInterrupt

    answer(monkeypatch, 0.5, 0.4, 0.45, 0.3)
    monkeypatch.setattr(budget.Budget, "_left", property(lambda _: 6.0))
    with pytest.raises((Interrupted, KeyboardInterrupt)):
        quantize(chosen, tmp_path / "stopped", listener=stop)
    monkeypatch.setattr(budget.Budget, "_left", property(lambda _: 1e9))  # would train for hours
    metrics = quantize(chosen, tmp_path / "stopped")
    assert 40 <= metrics["train"]["steps"] <= 60


def test_a_folder_without_a_recipe_takes_an_hour(model_folder, text_file, tmp_path, monkeypatch):
    seen = []
    monkeypatch.setattr(
        "edgeqat.pipeline.quantize.quantize", lambda recipe, *_: seen.append(recipe) or 1 / 0
    )
    for extra, minutes in (([], 60), (["--steps", "3"], None), (["--minutes", "5"], 5)):
        command = ["quantize", "--model", str(model_folder), "--data", str(text_file), *extra]
        with pytest.raises(ZeroDivisionError):
            cli([*command, "--output", str(tmp_path / "x")])
        assert seen.pop().train.minutes == minutes
