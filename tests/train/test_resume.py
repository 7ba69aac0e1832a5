"""A training stage that stopped and continues ends where the undisturbed one ends, bit for bit."""

from __future__ import annotations

import json
import os
import shutil
import signal

import pytest
import tiny
import torch

import edgeqat
from edgeqat.data.text import Blocks, BlockStream
from edgeqat.errors import Interrupted, StorageError, TrainingError
from edgeqat.recipe.data import DataSection
from edgeqat.recipe.recipe import Recipe
from edgeqat.train import trainer as trainers
from edgeqat.train.checkpoints import COMPLETE, Checkpoints
from edgeqat.train.objective import Objective
from edgeqat.train.trainer import QATTrainer

STEPS = 11


def recipe(quant=None, **train):
    rates = {"learning_rate": 5e-3, "scale_learning_rate": 1e-3}
    changes = {"steps": STEPS, "batch_size": 2, "log_steps": 4, "save_steps": 3, **rates, **train}
    return Recipe.model_validate(
        {
            "quant": {"scheme": "w4a8kv4", **(quant or {})},
            "data": {"context": 16},
            "train": changes,
            "distill": {"weight": 0.5},
        }
    )


def trainer(chosen, folder, listener=None, data=None, teacher=None):
    dropout = {"attention_dropout": 0.1}  # draws from the generators at every step
    model = edgeqat.prepare(tiny.llama(**dropout), quant=chosen.quant)
    objective = Objective(chosen.distill, teacher or tiny.llama(1))
    blocks = data or Blocks(tiny.ids(12, 16, seed=1))  # an epoch is 6 steps
    checkpoints = Checkpoints(folder / "qat")
    records = folder / "metrics.jsonl"
    folder.mkdir(exist_ok=True)
    return QATTrainer(model, chosen, blocks, objective, "qat", records, listener, checkpoints)


def interrupt_at(made, step, times=1):
    """Have the trainer get a SIGINT (in so many micro-batches) while it is in `step`."""
    compute, left = made.compute_loss, iter(range(times))

    def noisy(*args, **options):
        if made.state.global_step == step - 1 and next(left, None) is not None:
            os.kill(os.getpid(), signal.SIGINT)
        return compute(*args, **options)

    made.compute_loss = noisy
    return made


def records(folder):
    """Records without their times."""
    lines = (folder / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    found = [json.loads(line) for line in lines]
    return [{k: r[k] for k in ("stage", "step", "learning_rate", "terms")} for r in found]


def assert_same(one, two):
    for (name, p), q in zip(one.state_dict().items(), two.state_dict().values(), strict=True):
        assert torch.equal(p, q), name


def stream():
    data = DataSection(context=16, streaming=True)
    return BlockStream(lambda: iter([tiny.text(300), tiny.text(200, 1)]), tiny.tokenizer(), data)


CASES = {
    "before the first checkpoint": (2, {}, {}),
    "at the end of an epoch": (6, {}, {}),
    "micro-batches": (8, {}, {"accumulation": 2}),
    "static scales": (8, {"activation": {"mode": "static"}}, {}),
    "recomputed activations": (8, {}, {"gradient_checkpointing": True}),
    "bf16 moments": (8, {}, {"bf16_states": True}),
}


@pytest.mark.parametrize("case", CASES)
def test_an_interrupted_stage_ends_where_the_undisturbed_one_ends(tmp_path, case):
    step, quant, train = CASES[case]
    chosen = recipe(quant, **train)
    whole = trainer(chosen, tmp_path / "whole")
    whole.run()
    with pytest.raises(Interrupted, match=f"after step {step} of {STEPS}"):
        interrupt_at(trainer(chosen, tmp_path / "parts"), step).run()
    torch.rand(7)  # another process starts with other generators
    rest = trainer(chosen, tmp_path / "parts")
    rest.run()
    assert rest.state.global_step == STEPS
    assert_same(whole.model, rest.model)
    assert records(tmp_path / "parts") == records(tmp_path / "whole")
    assert rest.recorder.seconds > 0


def test_a_stream_continues_at_its_position(tmp_path):
    whole = trainer(recipe(), tmp_path / "whole", data=stream())
    whole.run()
    with pytest.raises(Interrupted):
        interrupt_at(trainer(recipe(), tmp_path / "parts", data=stream()), 5).run()
    rest = trainer(recipe(), tmp_path / "parts", data=stream())
    rest.run()
    assert_same(whole.model, rest.model)


def test_a_stage_that_was_done_is_not_trained_again(tmp_path):
    first = trainer(recipe(), tmp_path / "run")
    first.run()
    seen = []
    again = trainer(recipe(), tmp_path / "run", seen.append)
    again.run()
    assert seen == []
    assert again.state.global_step == STEPS
    assert_same(first.model, again.model)


def test_one_checkpoint_is_kept_and_none_without_save_steps(tmp_path):
    trainer(recipe(), tmp_path / "run").run()
    assert [p.name for p in (tmp_path / "run" / "qat").iterdir()] == [f"step-{STEPS}"]
    assert not list((tmp_path / "run").rglob("*.bin"))
    trainer(recipe(save_steps=0), tmp_path / "none").run()
    assert not (tmp_path / "none" / "qat").exists()


def test_records_after_the_checkpoint_are_dropped(tmp_path):
    folder = tmp_path / "run"
    with pytest.raises(Interrupted):
        interrupt_at(trainer(recipe(), folder), 4).run()
    with open(folder / "metrics.jsonl", "a", encoding="utf-8") as file:
        file.write('{"step": 8, "stage": "qat"}\n{"step": 1')  # killed while it wrote
    trainer(recipe(), folder).run()
    assert [record["step"] for record in records(folder)] == [4, 8, STEPS]


def test_an_incomplete_checkpoint_is_not_used(tmp_path):
    whole = trainer(recipe(), tmp_path / "whole")
    whole.run()
    with pytest.raises(Interrupted):
        interrupt_at(trainer(recipe(), tmp_path / "parts"), 6).run()
    good = tmp_path / "parts" / "qat" / "step-6"
    for name, damage in (
        ("step-8", lambda folder: (folder / COMPLETE).unlink()),
        ("step-9", lambda folder: os.truncate(folder / "optimizer.pt", 100)),
        (".step-10", lambda folder: None),
    ):
        damage(shutil.copytree(good, good.with_name(name)))
    assert Checkpoints(good.parent).latest() == (6, good)
    rest = trainer(recipe(), tmp_path / "parts")
    rest.run()
    assert_same(whole.model, rest.model)


def test_a_second_signal_stops_at_once_and_handlers_come_back(tmp_path):
    before = signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)
    made = interrupt_at(trainer(recipe(accumulation=2), tmp_path / "run"), 5, times=2)
    with pytest.raises(KeyboardInterrupt):
        made.run()
    assert (signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)) == before
    assert made.checkpoints.latest()[0] == 3


@pytest.mark.parametrize("failure", ["write_tensors", "_flush"])
def test_a_full_disk_keeps_the_checkpoint_before(tmp_path, monkeypatch, failure):
    whole = trainer(recipe(), tmp_path / "whole")
    whole.run()
    folder = tmp_path / "parts"
    with pytest.raises(Interrupted):
        interrupt_at(trainer(recipe(), folder), 4).run()

    def full(*_):
        raise OSError(28, "No space left on device")

    module = trainers if failure == "write_tensors" else "edgeqat.train.checkpoints"
    with monkeypatch.context() as patch:
        target = (module, failure) if failure == "write_tensors" else (f"{module}.{failure}",)
        patch.setattr(*target, full)
        with pytest.raises(StorageError) as caught:
            trainer(recipe(), folder).run()
    for word in ("checkpoint", "step-6", "No space left", "step 4 is kept", "same command"):
        assert word in str(caught.value)
    assert [path.name for path in (folder / "qat").iterdir()] == ["step-4"]
    rest = trainer(recipe(), folder)
    rest.run()
    assert_same(whole.model, rest.model)


class Exploding(torch.nn.Module):
    """A teacher whose logits are not finite from the given call on."""

    def __init__(self, call, value):
        super().__init__()
        self.model, self.call, self.value, self.calls = tiny.llama(1), call, value, 0

    def forward(self, **inputs):
        self.calls += 1
        output = self.model(**inputs)
        if self.calls >= self.call:
            output.logits = output.logits * self.value
        return output


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_loss_that_is_not_finite_keeps_the_last_good_state(tmp_path, value):
    chosen = recipe()
    made = trainer(chosen, tmp_path / "run", teacher=Exploding(8, value))
    with pytest.raises(TrainingError) as caught:
        made.run()
    last = tmp_path / "run" / "qat" / "step-6"
    for word in ("loss: ", " at step 8;", "train.learning_rate", "step 6 is kept", str(last)):
        assert word in str(caught.value)
    assert made.checkpoints.latest() == (6, last)


def test_a_gradient_that_is_not_finite_never_reaches_the_weights(tmp_path):
    made = trainer(recipe(), tmp_path / "run")
    compute = made.compute_loss

    def poisoned(*args, **options):
        loss = compute(*args, **options)
        if made.state.global_step == 4:
            loss.register_hook(lambda gradient: gradient * float("inf"))
        return loss

    made.compute_loss = poisoned
    with pytest.raises(TrainingError, match=r"gradient: .* at step 5; .*step 3 is kept"):
        made.run()
    assert all(parameter.isfinite().all() for parameter in made.model.parameters())
