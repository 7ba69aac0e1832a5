"""Training on a coreset: when samples are exchanged, and that a stopped run continues exactly."""

import json
import logging
import os
import signal
from itertools import chain

import pytest
import torch
from torch import nn

from edgeqat.coreset.forgetting import forgetting_scores
from edgeqat.coreset.reselection import Reselection
from edgeqat.coreset.sampler import CoresetSampler
from edgeqat.coreset.samples import ImageSamples
from edgeqat.coreset.selection import Selection
from edgeqat.data.images import Images, Normalizer
from edgeqat.errors import Interrupted
from edgeqat.recipe.data import CoresetSection
from edgeqat.recipe.recipe import Recipe
from edgeqat.train.checkpoints import Checkpoints
from edgeqat.train.diagnosis import Diagnosis
from edgeqat.train.image_objective import ImageObjective
from edgeqat.train.trainer import QATTrainer

COUNT, CHOSEN = 40, 10


class Net(nn.Module):
    def __init__(self, seed):
        super().__init__()
        torch.manual_seed(seed)
        self.stem, self.norm = nn.Conv2d(3, 4, 3, bias=False), nn.BatchNorm2d(4)
        self.drop, self.fc = nn.Dropout(0.2), nn.Linear(4, 4)

    def forward(self, images):
        hidden = torch.relu(self.norm(self.stem(images))).mean((2, 3))
        return self.fc(self.drop(hidden))


def data():
    torch.manual_seed(5)
    pixels = torch.randint(256, (COUNT, 3, 8, 8), dtype=torch.uint8)
    return Images(pixels, torch.arange(COUNT) % 4, [])


def trainer(folder=None, steps=12, selector="random", listener=None, **section):
    rates = {"optimizer": "sgd", "learning_rate": 0.05, "scale_learning_rate": 0.01}
    intervals = {"warmup_steps": 0, "log_steps": 3, "save_steps": 4}
    train = {"steps": steps, "batch_size": 4, **rates, **intervals}
    recipe = Recipe.model_validate({"train": train, "quant": {"scheme": "w2a32"}})
    images, teacher = data(), Net(1)
    reselection = None
    if section:
        chosen = CoresetSection(selector=selector, share=CHOSEN / COUNT, **section)
        selection = Selection(chosen, ImageSamples(images, Normalizer()), teacher, 0)
        reselection = Reselection(chosen, selection, 0)
    objective = ImageObjective(recipe.distill, teacher, Normalizer(), augmented=True)
    where = {} if folder is None else {
        "metrics_path": folder / "metrics.jsonl", "checkpoints": Checkpoints(folder / "qat")
    }  # fmt: skip
    if folder is not None:
        folder.mkdir(exist_ok=True)
    return QATTrainer(
        Net(0), recipe, images, objective, listener=listener, reselection=reselection, **where
    )


def records_of(folder):
    return (folder / "metrics.jsonl").read_text(encoding="utf-8").splitlines()


def watch(made):
    """The indices of every batch, by step."""
    seen, compute = [], made.compute_loss

    def noted(model, inputs, *args, **options):
        seen.append(inputs["index"].tolist())
        return compute(model, inputs, *args, **options)

    made.compute_loss = noted
    return seen


def test_a_sampler_goes_through_its_samples_in_an_order_of_seed_and_epoch():
    sampler = CoresetSampler(torch.tensor([3, 5, 8, 9, 11]), seed=1)
    first = list(sampler)
    assert sorted(first) == [3, 5, 8, 9, 11] and list(sampler) == first and len(sampler) == 5
    sampler.epoch = 1
    assert sorted(sampler) == sorted(first) and list(sampler) != first
    orders = {tuple(CoresetSampler(torch.arange(50), seed)) for seed in (0, 1, 2, 1 << 16, 1 << 31)}
    assert len(orders) == 5
    sampler.exchange(torch.tensor([0, 1, 2, 3, 4]))
    assert sorted(sampler) == [0, 1, 2, 3, 4]


def test_all_images_are_trained_on_without_a_coreset():
    made = trainer(steps=20)
    seen = watch(made)
    made.run()
    assert sorted(chain(*seen[:10])) == list(range(COUNT))
    assert made.recorder.rate == "samples_per_second" and made.recorder.per_step == 4


@pytest.mark.parametrize("every, epochs", [(1, [0, 1, 2, 3]), (2, [0, 2]), (0, [0])])
def test_samples_are_exchanged_every_so_many_passes(every, epochs):
    made = trainer(every=every)  # a pass is 3 steps: 4 + 4 + 2 samples
    seen = watch(made)
    made.run()
    passes = [sorted(chain(*seen[start : start + 3])) for start in range(0, 12, 3)]
    assert all(len(set(one)) == CHOSEN for one in passes)
    turns = made.reselection.turns
    assert [turn["epoch"] for turn in turns] == epochs
    assert len({tuple(one) for one in passes}) == len(epochs)
    assert made.recorder.per_step == pytest.approx(10 / 3)
    assert made.recorder.selection_seconds > 0


def test_samples_are_exchanged_every_so_many_steps_at_the_next_pass():
    made = trainer(every_steps=4)
    made.run()
    assert [turn["step"] for turn in made.reselection.turns] == [0, 6]


@pytest.mark.parametrize("step", [2, 3, 5, 9])
def test_an_interrupted_coreset_run_ends_where_the_undisturbed_one_ends(tmp_path, step):
    whole = trainer(tmp_path / "whole", selector="evs", every=2)
    whole.run()
    parts = trainer(tmp_path / "parts", selector="evs", every=2)
    compute = parts.compute_loss

    def noisy(*args, **options):
        if parts.state.global_step == step - 1:
            os.kill(os.getpid(), signal.SIGINT)
        return compute(*args, **options)

    parts.compute_loss = noisy
    parts.diagnosis.first, parts.diagnosis.told = {"kl": 2.0, "correction": 5.0}, True
    with pytest.raises(Interrupted):
        parts.run()
    torch.rand(3)
    rest = trainer(tmp_path / "parts", selector="evs", every=2)
    rest.run()
    assert (rest.diagnosis.first, rest.diagnosis.told) == (parts.diagnosis.first, True)
    for name, tensor in whole.model.state_dict().items():
        assert torch.equal(tensor, rest.model.state_dict()[name]), name

    def lasting(made):
        return [
            {k: v for k, v in turn.items() if k != "seconds"} for turn in made.reselection.turns
        ]

    assert lasting(rest) == lasting(whole)
    assert rest.recorder.selection_seconds > parts.reselection.turns[0]["seconds"]
    records = [
        [json.loads(line)["terms"] for line in records_of(tmp_path / name)]
        for name in ("whole", "parts")
    ]
    assert records[0] == records[1] and len(records[0]) == 4


def test_what_a_trial_forgets_is_counted():
    recipe = trainer().recipe
    section = CoresetSection(selector="forgetting", share=0.5, trial_steps=20)
    recipe = recipe.model_copy(update={"coreset": section})
    images = data()
    samples = ImageSamples(images, Normalizer())
    student = Net(0).train()
    before = {name: tensor.clone() for name, tensor in student.state_dict().items()}
    objective = ImageObjective(recipe.distill, None, Normalizer(), augmented=False)
    found = forgetting_scores(student, images, samples, objective, recipe)
    assert found.shape == (COUNT,) and found.min() >= 0 and found.max() <= 10
    assert len(found.unique()) > 2
    assert all(torch.equal(before[name], t) for name, t in student.state_dict().items())
    selection = Selection(section, samples, Net(1), 0)
    selection.fixed = found
    chosen = selection(student, 0.0, 0)
    assert found[chosen.indices].min() >= found.sort(descending=True).values[19]


def test_fixed_samples_stay():
    chosen = CoresetSection(file="idx.json")
    made = trainer()
    made.reselection = Reselection(chosen, torch.arange(3, 13), 0)
    made.add_callback(made.reselection)
    seen = watch(made)
    made.run()
    assert set(chain(*seen)) == set(range(3, 13)) and made.reselection.turns == []


def test_an_accuracy_that_stands_still_is_told(caplog):
    made = trainer(selector="evs", every=2)
    made.args.learning_rate = 0
    made.create_optimizer().param_groups[0]["lr"] = 0.0
    for group in made.optimizer.param_groups:
        group["lr"] = 0.0
    with caplog.at_level(logging.INFO, "edgeqat"):
        made.run()
    told = [record.message for record in caplog.records]
    assert any("coreset at epoch 0: 10 of 40, by evs, accuracy over all samples" in m for m in told)
    assert any("accuracy stands still since the selection at epoch 0" in m for m in told)


def test_a_correction_that_stays_high_is_told_once(caplog):
    class State:
        epoch = 3.0

    made = Diagnosis()
    with caplog.at_level(logging.WARNING, "edgeqat"):
        for kl, correction in ((2.0, 5.0), (1.5, 4.9), (0.8, 4.8), (0.5, 4.8)):
            made.on_log(None, State(), None, {"kl": kl, "correction": correction})
    assert [r.message.split(";")[0] for r in caplog.records] == [
        "correction: at epoch 3.0 it is still 96% of what it was while kl is down to 40%"
    ]


def test_a_correction_that_falls_is_not(caplog):
    made = Diagnosis()
    for kl, correction in ((2.0, 5.0), (0.5, 1.0)):
        made.on_log(None, None, None, {"kl": kl, "correction": correction})
    assert caplog.records == []
