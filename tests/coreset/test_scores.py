"""Coreset scores against their definitions, written out for one sample at a time."""

import math

import pytest
import torch

from edgeqat.coreset import scores


@pytest.fixture
def outputs():
    torch.manual_seed(0)
    student, teacher = torch.randn(6, 5), torch.randn(6, 5)
    return student, teacher.log_softmax(-1), torch.tensor([0, 1, 2, 3, 4, 0])


def test_relative_entropy_is_taken_of_the_student(outputs):
    student, teacher, _ = outputs
    p, q = student.softmax(-1), teacher.exp()
    expected = [sum(a * math.log(a / b) for a, b in zip(*rows, strict=True)) for rows in zip(
        p.tolist(), q.tolist(), strict=True)]  # fmt: skip
    found = scores.relative_entropy(student, teacher)
    assert torch.allclose(found, torch.tensor(expected), atol=1e-5)
    assert not torch.allclose(
        found, torch.nn.functional.kl_div(p.log(), q, reduction="none").sum(1)
    )


def test_error_vector_and_disagreement(outputs):
    student, teacher, labels = outputs
    p = student.softmax(-1)
    onehot = torch.nn.functional.one_hot(labels, 5)
    assert torch.allclose(scores.error_vector(student, labels), (p - onehot).norm(dim=1))
    assert torch.allclose(scores.disagreement(student, teacher), (p - teacher.exp()).norm(dim=1))
    assert torch.allclose(scores.el2n([student], labels), scores.error_vector(student, labels))


def test_the_blend_moves_from_errors_to_disagreement(outputs):
    assert scores.blend(0) == 1 and scores.blend(1) == pytest.approx(0, abs=1e-9)
    assert scores.blend(0.5) == pytest.approx(2**-0.5)  # the cosine, not its square
    error, distance, entropy = torch.rand(3, 4)
    assert torch.equal(scores.adaptive(error, distance, 0.0), error)
    assert torch.allclose(scores.quarc(error, distance, entropy, 1.0), distance + entropy)


def test_all_classes_kept_equals_the_whole(outputs):
    student, teacher, _ = outputs
    values, index = teacher.topk(5)
    whole = scores.relative_entropy(student, teacher)
    assert torch.allclose(scores.relative_entropy(student, values, index), whole, atol=1e-4)


def test_the_most_probable_classes_come_close(outputs):
    torch.manual_seed(1)
    student = torch.randn(8, 100) * 4
    teacher = (student + torch.randn(8, 100)).log_softmax(-1)
    values, index = teacher.topk(20)
    whole = scores.relative_entropy(student, teacher)
    kept = scores.relative_entropy(student, values, index)
    assert torch.all(kept <= whole + 1e-5)  # merging classes cannot add information
    assert torch.allclose(kept, whole, rtol=0.2)


def test_a_block_is_the_mean_of_its_tokens(outputs):
    torch.manual_seed(2)
    student, teacher = torch.randn(3, 4, 7), torch.randn(3, 4, 7).log_softmax(-1)
    labels = torch.randint(7, (3, 4))
    labels[1, 2:] = scores.IGNORE
    found = scores.relative_entropy(student, teacher, labels=labels)
    single = scores.relative_entropy(student.flatten(0, 1), teacher.flatten(0, 1)).view(3, 4)
    assert torch.allclose(found[0], single[0].mean()) and torch.allclose(
        found[1], single[1, :2].mean()
    )


def test_forgetting_counts_what_was_learned_and_lost():
    correct = torch.tensor([[1, 0, 0], [0, 0, 1], [1, 0, 1], [0, 0, 1]], dtype=torch.bool)
    assert scores.forgetting(correct).tolist() == [2, 4, 0]


def test_moderate_prefers_the_median_distance():
    features = torch.tensor([[0.0], [1.0], [2.0], [9.0], [-12.0]])
    found = scores.moderate(features, torch.zeros(5, dtype=torch.long))
    assert found.argmax() == 2 and found.argmin() in (3, 4)
