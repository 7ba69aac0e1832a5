"""QATTrainer on tiny models: what it learns, accumulation, checkpointing, bf16, records, NaN."""

from __future__ import annotations

import json
import tempfile
from contextlib import suppress
from itertools import combinations
from pathlib import Path

import pytest
import tiny
import torch
from transformers import TrainerCallback

import edgeqat
from edgeqat.data.text import Blocks
from edgeqat.errors import TrainingError
from edgeqat.recipe.recipe import Recipe
from edgeqat.train.objective import Objective
from edgeqat.train.trainer import QATTrainer, training_arguments


def recipe(scheme="w4a8kv4", distill=None, **train):
    rates = {"learning_rate": 5e-4, "scale_learning_rate": 1e-4}
    train = {"steps": 4, "batch_size": 4, "warmup_steps": 0, "log_steps": 1, **rates, **train}
    return Recipe.model_validate(
        {
            "quant": {"scheme": scheme},
            "data": {"context": 16},
            "train": train,
            "distill": distill or {"weight": 0.5},
        }
    )


def blocks(count=64, seed=1):
    return Blocks(tiny.ids(count, 16, seed))


def run(chosen, data=None, path=None, prepared=True, seed=0):
    """Train a tiny model by a recipe; returns the model and the listener's records."""
    records = []
    model, teacher = tiny.llama(seed), tiny.llama(seed)
    if prepared:
        edgeqat.prepare(model, quant=chosen.quant)
    objective = Objective(chosen.distill, teacher)
    trainer = QATTrainer(model, chosen, data or blocks(), objective, "qat", path, records.append)
    trainer.run()
    return model, records


def losses(records):
    return [record["terms"]["loss"] for record in records]


def test_training_lowers_the_loss_and_moves_weights_and_scales():
    before = edgeqat.prepare(tiny.llama(), "w4a8kv4")
    data = Blocks(tiny.ids(4, 16).repeat(8, 1))
    model, records = run(recipe(steps=20, learning_rate=5e-3, scale_learning_rate=1e-3), data)
    assert losses(records)[-1] < 0.7 * losses(records)[0]
    moved = dict(model.named_parameters())
    same = [name for name, p in before.named_parameters() if torch.equal(p, moved[name])]
    assert same == []
    assert all(p.isfinite().all() for p in model.parameters())


def test_two_micro_batches_of_four_are_one_batch_of_eight():
    whole, expected = run(recipe(batch_size=8))
    parts, found = run(recipe(batch_size=4, accumulation=2))
    assert losses(found) == pytest.approx(losses(expected), rel=1e-4)
    start = dict(edgeqat.prepare(tiny.llama(), "w4a8kv4").named_parameters())
    for (name, one), two in zip(whole.named_parameters(), parts.parameters(), strict=True):
        change = (one - start[name]).norm()
        assert (one - two).norm() <= 0.05 * change + 1e-6, name


def test_gradients_of_micro_batches_stay_in_their_place_and_are_freed_at_the_end():
    places = []

    class Watch(TrainerCallback):
        def on_step_begin(self, args, state, control, model, **kwargs):
            grads = [p.grad for p in model.parameters() if p.requires_grad]
            assert all((grad == 0).all() for grad in grads)
            places.append([grad.data_ptr() for grad in grads])

    chosen = recipe(batch_size=2, accumulation=2)
    model = edgeqat.prepare(tiny.llama(), quant=chosen.quant)
    objective = Objective(chosen.distill, tiny.llama())
    trainer = QATTrainer(model, chosen, blocks(), objective)
    trainer.add_callback(Watch())
    trainer.run()
    assert len(places) == 4 and all(place == places[0] for place in places)
    assert all(p.grad is None for p in model.parameters()) and "zero_grad" not in vars(model)


def test_micro_batches_keep_the_scale_of_the_gradient():
    norms = []
    for batch in ({"batch_size": 8}, {"batch_size": 2, "accumulation": 4}):
        chosen = recipe("w8a8kv8", **batch, steps=1, max_grad_norm=1e9)
        model = edgeqat.prepare(tiny.llama(), quant=chosen.quant)
        trainer = QATTrainer(model, chosen, blocks(), Objective(chosen.distill, tiny.llama(1)))
        trainer.run()
        norms.append(trainer.state.log_history[0]["grad_norm"])
    assert norms[1] == pytest.approx(norms[0], rel=1e-2)


@pytest.mark.parametrize("scheme", ["w8a8kv8", "w4a8kv4", "w3a4kv2"])
def test_gradient_checkpointing_trains_the_same_model(scheme):
    plain, expected = run(recipe(scheme, steps=2))
    saved, found = run(recipe(scheme, steps=2, gradient_checkpointing=True))
    assert losses(found) == losses(expected)
    for (name, one), two in zip(plain.named_parameters(), saved.parameters(), strict=True):
        assert torch.equal(one, two), name


def test_the_same_seed_trains_the_same_model():
    one, first = run(recipe())
    two, second = run(recipe())
    assert losses(first) == losses(second)
    assert all(torch.equal(p, q) for p, q in zip(one.parameters(), two.parameters(), strict=True))


def test_another_seed_sees_the_data_in_another_order():
    other = recipe().model_copy(update={"seed": 1})
    assert losses(run(other)[1]) != losses(run(recipe())[1])


def test_bf16_trains_with_quantizers_in_float32():
    seen = set()
    chosen = recipe(bf16=True, steps=2)
    model = edgeqat.prepare(tiny.llama(), quant=chosen.quant)
    for name, module in model.named_modules():
        if name.endswith("weight_quantizer"):
            module.register_forward_hook(lambda m, i, o: seen.add(o.dtype))
    records = []
    objective, taught = Objective(chosen.distill, tiny.llama()), set()
    objective.teacher.model.layers[0].mlp.up_proj.register_forward_hook(
        lambda m, i, o: taught.add(o.dtype)
    )
    QATTrainer(model, chosen, blocks(), objective, listener=records.append).run()
    assert seen == {torch.float32} and taught == {torch.bfloat16}
    assert {p.dtype for p in model.parameters()} == {torch.float32}
    exact = losses(run(recipe(steps=2))[1])
    assert losses(records) == pytest.approx(exact, rel=0.05)
    assert losses(records) != exact


def test_tied_weights_stay_tied_through_training():
    model, _ = run(recipe())
    assert model.lm_head.weight is model.model.embed_tokens.weight


def test_float_models_train_with_it_too():
    _, records = run(recipe(distill={"weight": 0.0}), prepared=False)
    assert set(records[0]["terms"]) == {"loss", "ce"}
    assert records[0]["terms"]["loss"] == records[0]["terms"]["ce"]


def test_zero_steps_change_nothing():
    model, records = run(recipe(steps=0))
    assert records == []
    expected = edgeqat.prepare(tiny.llama(), "w4a8kv4")
    for one, two in zip(model.parameters(), expected.parameters(), strict=True):
        assert torch.equal(one, two)


def test_records_go_to_metrics_jsonl_and_to_the_listener(tmp_path):
    path = tmp_path / "metrics.jsonl"
    _, records = run(recipe(steps=6, log_steps=2), path=path)
    assert [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()] == records
    assert [record["step"] for record in records] == [2, 4, 6]
    for record in records:
        assert set(record) == {
            "stage", "step", "steps", "seconds", "tokens_per_second", "learning_rate", "terms"
        }  # fmt: skip
        assert (record["stage"], record["steps"]) == ("qat", 6)
        assert record["tokens_per_second"] > 0
        assert set(record["terms"]) == {"loss", "ce", "kl"}
    middle = records[1]["terms"]
    assert middle["loss"] == pytest.approx(0.5 * (middle["ce"] + middle["kl"]), rel=1e-4)


def test_the_last_batch_of_a_pass_counts_what_it_has():
    model, chosen = tiny.llama(), recipe(batch_size=8)
    trainer = QATTrainer(model, chosen, blocks(20), Objective(chosen.distill, None))
    assert trainer.recorder.per_step == pytest.approx(20 / 3 * 16)


def test_a_listener_that_wants_to_is_told_every_step():
    class Listener(list):
        moved = list.append

        def __call__(self, record):
            pass

    positions, model = Listener(), edgeqat.prepare(tiny.llama(), "w4a8kv4")
    objective = Objective(recipe().distill, tiny.llama())
    chosen = recipe(steps=3, log_steps=2)
    QATTrainer(model, chosen, blocks(), objective, listener=positions).run()
    assert [(position["step"], position["steps"]) for position in positions] == [
        (0, 3), (1, 3), (2, 3), (3, 3)
    ]  # fmt: skip


def test_records_are_means_since_the_last_one():
    every = losses(run(recipe(steps=6))[1])
    pairs = losses(run(recipe(steps=6, log_steps=2))[1])
    expected = [(every[i] + every[i + 1]) / 2 for i in (0, 2, 4)]
    assert pairs == pytest.approx(expected, rel=1e-4)


def test_the_last_steps_are_recorded_also_where_the_interval_does_not_divide_them():
    _, records = run(recipe(steps=5, log_steps=3))
    assert [record["step"] for record in records] == [3, 5]


def test_the_learning_rate_warms_up_and_falls():
    chosen = recipe(steps=6, warmup_steps=2, learning_rate=1e-3)
    rates = [record["learning_rate"] for record in run(chosen)[1]]
    peak = rates.index(max(rates))
    assert max(rates) <= 1e-3
    assert 0 < peak < 5
    assert rates[peak:] == sorted(rates[peak:], reverse=True)


class Exploding(torch.nn.Module):
    """A teacher whose logits are NaN from the given call on."""

    def __init__(self, call):
        super().__init__()
        self.model, self.call, self.calls = tiny.llama(), call, 0

    def forward(self, **inputs):
        self.calls += 1
        output = self.model(**inputs)
        if self.calls >= self.call:
            output.logits = output.logits * float("nan")
        return output


def explode(chosen):
    """A trainer that stopped at step 3, and its error."""
    model = edgeqat.prepare(tiny.llama(), quant=chosen.quant)
    trainer = QATTrainer(model, chosen, blocks(), Objective(chosen.distill, Exploding(3)))
    with pytest.raises(TrainingError) as caught:
        trainer.run()
    left = list(Path(tempfile.gettempdir()).glob("edgeqat-*"))
    with suppress(AttributeError):  # a folder left behind would warn in some later test
        trainer._folder.cleanup()
    return str(caught.value), left


@pytest.fixture
def temporary(tmp_path, monkeypatch):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    return tmp_path


def test_a_loss_that_is_not_finite_stops_the_run_and_names_the_step(temporary):
    message, _ = explode(recipe(steps=5))
    assert message.startswith("loss: nan at step 3; lower train.learning_rate")


def test_with_micro_batches_the_optimizer_step_is_named(temporary):
    message, _ = explode(recipe(steps=5, accumulation=2))
    assert message.startswith("loss: nan at step 2;")


def test_a_stopped_run_leaves_no_temporary_folder(temporary):
    assert explode(recipe(steps=5))[1] == []


def test_a_run_leaves_no_temporary_folder(temporary):
    run(recipe(steps=1))
    assert list(temporary.iterdir()) == []


def test_seeds_lie_further_apart_than_a_run_has_passes():
    seeds = (0, 1, 2, 3, 65535, 65536, 2**32 - 1)
    made = [training_arguments(recipe().model_copy(update={"seed": s}), "x", False) for s in seeds]
    for one, other in combinations([each.data_seed for each in made], 2):
        assert 0 <= one < 2**32
        assert 100_000 < (one - other) % 2**32 < 2**32 - 100_000
    assert made[0].data_seed == 0


def test_several_devices_are_not_one_model_in_parallel(monkeypatch):
    monkeypatch.setattr("transformers.TrainingArguments.n_gpu", 3)
    assert training_arguments(recipe(), "x", False)._n_gpu == 1
