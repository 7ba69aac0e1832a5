"""The objective of classifiers: terms, the same augmented pixels for both, layer correction."""

import copy

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from edgeqat.data.images import Normalizer
from edgeqat.errors import RecipeError
from edgeqat.recipe.train import CorrectSection, DistillSection
from edgeqat.train.correction import Correction
from edgeqat.train.image_objective import ImageObjective
from edgeqat.vision import zoo


class Block(nn.Module):
    def __init__(self):
        super().__init__()
        self.one, self.two = nn.Conv2d(4, 4, 3, padding=1), nn.Conv2d(4, 4, 1)

    def forward(self, input):
        return input + self.two(torch.relu(self.one(input)))


class Net(nn.Module):
    """A stem, two blocks and a classifier; remembers the inputs it saw."""

    def __init__(self, seed):
        super().__init__()
        torch.manual_seed(seed)
        self.stem, self.blocks = nn.Conv2d(3, 4, 3, padding=1), nn.Sequential(Block(), Block())
        self.fc, self.seen = nn.Linear(4, 5), []

    def forward(self, images):
        self.seen.append(images)
        return self.fc(self.blocks(self.stem(images)).mean((2, 3)))


@pytest.fixture
def batch():
    torch.manual_seed(3)
    pixels = torch.randint(256, (6, 3, 8, 8), dtype=torch.uint8)
    return {"pixels": pixels, "labels": torch.arange(6) % 5, "index": torch.arange(6)}


def objective(weight=1.0, augmented=False, seed=0, **correct):
    section = CorrectSection(**correct)
    distill = DistillSection(weight=weight)
    return ImageObjective(distill, Net(1), Normalizer(), augmented, seed, section)


@pytest.mark.parametrize("weight", [0.0, 0.5, 1.0])
def test_the_loss_is_the_weighted_sum_of_its_terms(batch, weight):
    made = objective(weight)
    found, images = made(Net(0), batch), Normalizer()(batch["pixels"])
    logits, target = Net(0)(images), Net(1)(images)
    hard = F.cross_entropy(logits, batch["labels"])
    soft = F.kl_div(logits.log_softmax(-1), target.softmax(-1), reduction="batchmean")
    expected = (1 - weight) * hard + weight * soft
    assert found["loss"].item() == pytest.approx(expected.item(), rel=1e-5)
    assert ("kl" in found) == (weight > 0)


def test_both_models_see_the_same_augmented_pixels(batch):
    made, student = objective(augmented=True), Net(0)
    made(student, batch)
    assert torch.equal(student.seen[0], made.teacher.seen[0])
    assert not torch.equal(student.seen[0], Normalizer()(batch["pixels"]))


def test_what_is_drawn_follows_from_seed_step_and_batch(batch):
    def seen(step=0, seed=0, index=0):
        student = Net(0)
        objective(augmented=True, seed=seed)(student, {**batch, "index": batch["index"] + index},
                                             step=step)  # fmt: skip
        return student.seen[0]

    torch.rand(5)
    assert torch.equal(seen(step=4), seen(step=4))
    assert not torch.equal(seen(step=4), seen(step=5))
    assert not torch.equal(seen(seed=1), seen(seed=2))
    assert not torch.equal(seen(index=0), seen(index=9))


def test_labels_may_be_missing_where_they_have_no_weight(batch):
    unlabelled = {**batch, "labels": torch.full((6,), -1)}
    assert objective()(Net(0), unlabelled)["loss"] == objective()(Net(0), batch)["loss"]


@pytest.mark.parametrize("form", ["mse", "kl"])
def test_block_outputs_are_pulled_to_the_teachers(batch, form):
    alone = objective()(Net(0), batch)
    student = Net(0)
    made = objective(weight=1.0, form=form)
    made.correction = Correction(CorrectSection(weight=3.0, form=form))
    found = made(student, batch)
    expected = alone["loss"] + 3 * found["correction"]
    assert found["loss"].item() == pytest.approx(expected.item(), rel=1e-5)
    found["correction"].backward()
    assert student.blocks[0].one.weight.grad.abs().max() > 0
    assert student.fc.weight.grad is None  # behind the blocks
    teacher = made.teacher
    assert made(teacher, batch)["correction"].item() == pytest.approx(0, abs=1e-6)


def test_a_correction_of_weight_zero_is_not_computed(batch):
    assert set(objective()(Net(0), batch)) == {"loss", "ce", "kl"}


def test_blocks_are_found_by_their_rule_or_refused():
    section = CorrectSection(weight=1, blocks="stages.*")
    with pytest.raises(RecipeError, match=r"correct.blocks: 'stages.\*' matches no block"):
        Correction(section).check(Net(0), Net(1))
    other = Net(1)
    other.blocks.append(Block())
    with pytest.raises(RecipeError, match="finds 2 blocks of the model and 3 of its teacher"):
        Correction(CorrectSection(weight=1)).check(Net(0), other)


def with_statistics(seed):
    """A MobileNetV2 whose norms and logits are not those of a new one."""
    torch.manual_seed(seed)
    model = zoo.build("mobilenetv2-cifar100").eval()
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.normal_(module.running_mean, std=0.1)
            nn.init.uniform_(module.running_var, 0.5, 2.0)
            nn.init.normal_(module.weight)
            nn.init.normal_(module.bias)
        elif isinstance(module, nn.Linear):
            nn.init.normal_(module.weight)
    return model


def norms(model):
    return [module for module in model.modules() if isinstance(module, nn.BatchNorm2d)]


def test_the_norms_of_the_teacher_are_folded(batch):
    teacher = with_statistics(5)
    made = ImageObjective(DistillSection(), teacher, Normalizer(), augmented=False)
    found = made(copy.deepcopy(teacher), batch)["kl"].item()
    assert not norms(made.teacher) and norms(teacher)
    assert found == pytest.approx(0, abs=1e-4)
    assert made(with_statistics(6), batch)["kl"].item() > 1


@pytest.mark.parametrize(("blocks", "folds"), [("auto", True), ("features.*.conv.0.0", False)])
def test_layer_correction_sees_the_teachers_own_blocks(batch, blocks, folds):
    section, teacher = CorrectSection(weight=1.0, blocks=blocks), with_statistics(5)
    made = ImageObjective(DistillSection(), teacher, Normalizer(), False, correct=section)
    found = made(copy.deepcopy(teacher), batch)["correction"].item()
    assert found == pytest.approx(0, abs=1e-6)
    assert bool(norms(made.teacher)) != folds
