"""Selection: scores of all samples from one pass, the float model's outputs from their cache."""

import pytest
import tiny
import torch
from torch import nn

from edgeqat.coreset import float_outputs as outputs_module
from edgeqat.coreset import scores
from edgeqat.coreset.float_outputs import float_outputs
from edgeqat.coreset.samples import BlockSamples, ImageSamples
from edgeqat.coreset.selection import Selection, needs_outputs
from edgeqat.data.images import Images, Normalizer
from edgeqat.data.text import Blocks
from edgeqat.errors import UsageError
from edgeqat.losses.distill import IGNORE
from edgeqat.recipe.data import CoresetSection

COUNT, CLASSES = 40, 4
SELECTORS = ("quarc", "acs", "res", "evs", "ds", "el2n", "moderate", "random")


class Net(nn.Module):
    def __init__(self, seed):
        super().__init__()
        torch.manual_seed(seed)
        self.stem, self.drop = nn.Linear(3, 6), nn.Dropout(0.5)
        self.fc = nn.Linear(6, CLASSES)
        self.calls = 0

    def forward(self, images):
        self.calls += 1
        return 3 * self.fc(self.drop(torch.relu(self.stem(images.mean((2, 3))))))


@pytest.fixture(autouse=True)
def _own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("EDGEQAT_CACHE", str(tmp_path))


def samples(labelled=True):
    torch.manual_seed(5)
    pixels = torch.randint(256, (COUNT, 3, 4, 4), dtype=torch.uint8)
    labels = torch.arange(COUNT) % CLASSES if labelled else torch.full((COUNT,), -1)
    return ImageSamples(Images(pixels, labels, []), Normalizer())


def selection(selector, data=None, share=0.25, kept=2, **section):
    data = data or samples()
    chosen = CoresetSection(share=share, selector=selector, **section)
    made = Selection(chosen, data, Net(1), seed=0)
    if needs_outputs(chosen):
        made.outputs = float_outputs(made.teacher, data, "teacher", kept)
    return made


def parts(student):
    data = samples()
    images = data.normalizer(data.images.pixels)
    own, other = student.eval()(images), Net(1).eval()(images).log_softmax(-1)
    return {
        "evs": scores.error_vector(own, data.images.labels),
        "ds": scores.disagreement(own, other),
        "res": scores.relative_entropy(own, other),
        "el2n": scores.error_vector(other, data.images.labels),
    }


@pytest.mark.parametrize("selector", SELECTORS)
def test_the_highest_scores_are_kept(selector):
    student = Net(0)
    chosen = selection(selector, balanced=False)(student.train(), 0.5, 0)
    assert student.training
    assert len(chosen.indices) == 10 and chosen.indices.tolist() == sorted(
        set(chosen.indices.tolist())
    )
    found = parts(student)
    found["acs"] = scores.adaptive(found["evs"], found["ds"], 0.5)
    found["quarc"] = scores.quarc(found["evs"], found["ds"], found["res"], 0.5)
    if selector in found:
        best = found[selector].topk(10).indices.sort().values
        assert torch.equal(chosen.indices, best)
        quartiles = chosen.summary["scores"]["quartiles"]
        assert quartiles[4] == pytest.approx(found[selector].max().item(), rel=1e-4)
    assert (chosen.summary["accuracy"] is None) == (selector in ("el2n", "moderate", "random"))


def test_blocks_of_text_are_scored_by_el2n_too():
    blocks = BlockSamples(Blocks(torch.randint(96, (8, 24))))
    made = Selection(CoresetSection(share=0.25, selector="el2n"), blocks, tiny.llama(), seed=0)
    assert len(made(tiny.llama(), 0.0, 0).indices) == 2


def test_places_drawn_at_random_do_not_cover_classes():
    with pytest.raises(UsageError, match="3 samples chosen by score cannot cover 4 classes"):
        selection("res", share=0.1, balanced=True, random_share=0.3)


def test_a_histogram_has_the_selected_ones_at_its_end():
    found = selection("res", balanced=False)(Net(0), 0.0, 0).summary
    histogram = found["histogram"]
    assert sum(histogram["all"]) == found["samples"]
    assert sum(histogram["selected"]) == found["selected"]
    low, high = (found["scores"]["quartiles"][end] for end in (0, -1))
    assert (histogram["edges"][0], histogram["edges"][-1]) == pytest.approx((low, high), rel=1e-5)
    last = next(n for n, count in enumerate(histogram["selected"]) if count)
    assert histogram["selected"][last + 1 :] == histogram["all"][last + 1 :]


def test_a_summary_tells_accuracy_classes_and_overlap():
    student = Net(0)
    made = selection("res", share=0.5)
    first = made(student, 0.0, 0)
    again = made(student, 0.0, 1, first.indices)
    assert again.summary["overlap"] == 1.0 and first.summary["overlap"] is None
    assert sum(first.summary["classes"]) == first.summary["selected"] == 20
    images = made.samples.normalizer(made.samples.images.pixels)
    right = student.eval()(images).argmax(-1) == made.samples.images.labels
    assert first.summary["accuracy"] == pytest.approx(100 * right.float().mean().item())


def test_few_samples_are_balanced_over_classes_unless_said():
    scored = [selection("res", share=0.1, balanced=flag) for flag in (True, False)]
    counts = [made(Net(0), 0.0, 0).summary["classes"] for made in scored]
    assert counts[0] == [1, 1, 1, 1] and counts[1] != counts[0]
    assert selection("res", share=0.04 + 0.059).classes is None
    with pytest.raises(UsageError, match=r"share: 2 samples chosen by score cannot cover 4 "):
        selection("res", share=0.04)


def test_random_selections_differ_by_turn_and_repeat_by_seed():
    made = selection("random")
    one, two = made(Net(0), 0, 0).indices, made(Net(0), 0, 1).indices
    assert not torch.equal(one, two)
    assert torch.equal(selection("random")(Net(0), 0, 1).indices, two)


def test_the_float_model_runs_once():
    first = selection("quarc")
    calls = first.teacher.calls
    assert calls > 0
    first(Net(0), 0, 0), first(Net(0), 0.5, 1)
    assert first.teacher.calls == calls
    second = selection("quarc")
    assert second.teacher.calls == 0 and second.outputs.seconds == 0
    assert torch.equal(first.outputs.log_probabilities, second.outputs.log_probabilities)


def test_outputs_are_computed_anew_for_other_data_another_model_and_a_damaged_file(tmp_path):
    model, data = Net(1), samples()
    float_outputs(model, data, "a", 2)
    calls = model.calls
    float_outputs(model, data, "b", 2)
    other = samples()
    other.images.pixels[0] += 1
    float_outputs(model, other, "a", 2)
    assert model.calls == 3 * calls
    for file in (tmp_path / "outputs").iterdir():
        file.write_bytes(file.read_bytes()[:100])
    found = float_outputs(model, data, "a", 2)
    assert model.calls == 4 * calls and found.log_probabilities.shape == (COUNT, CLASSES)


def test_many_classes_are_kept_as_the_most_probable(monkeypatch):
    exact = selection("res")(Net(0), 0, 0)
    monkeypatch.setattr(outputs_module, "EXACT_CLASSES", 3)
    made = selection("res", kept=3)
    assert made.outputs.numbers.shape == made.outputs.log_probabilities.shape == (COUNT, 3)
    found = made(Net(0), 0, 0)  # the rest is one class, so all of it is known
    assert torch.equal(found.indices, exact.indices)
    again = selection("res", kept=3)
    assert torch.equal(again.outputs.numbers, made.outputs.numbers) and again.teacher.calls == 0


def test_a_score_of_text_uses_all_classes_where_they_fit(monkeypatch):
    monkeypatch.setattr(outputs_module, "EXACT_CLASSES", 100)
    data = BlockSamples(Blocks(tiny.ids(8, 12)))
    whole = float_outputs(tiny.llama(1), data, "whole", None)
    assert whole.log_probabilities.shape == (8, 12, tiny.VOCABULARY) and whole.numbers is None
    again = float_outputs(tiny.llama(1), data, "whole", None)
    assert torch.equal(again.log_probabilities, whole.log_probabilities) and again.seconds == 0
    monkeypatch.setattr(outputs_module, "EXACT_BYTES", 8 * 12 * tiny.VOCABULARY * 4 - 1)
    most = float_outputs(tiny.llama(1), data, "most", None)
    assert most.numbers.shape == (8, 12, 256)
    logits = tiny.llama(0)(data.blocks.ids).logits
    exact = scores.relative_entropy(logits, whole.log_probabilities)
    found = scores.relative_entropy(logits, most.log_probabilities, most.numbers.long())
    assert torch.allclose(found, exact, rtol=0.2)  # of random weights, which are as good as flat
    assert (found < exact).all()  # what is joined can only come nearer
    assert CoresetSection().kept_classes is None


def test_blocks_of_text_are_samples():
    data = BlockSamples(Blocks(tiny.ids(8, 12)))
    assert data.labels(torch.tensor([2]))[0, -1] == IGNORE
    made = Selection(CoresetSection(share=0.25), data, tiny.llama(1), 0)
    made.outputs = float_outputs(made.teacher, data, "llama", 16)
    chosen = made(tiny.llama(0), 0.0, 0)
    assert len(chosen.indices) == 2 and "classes" not in chosen.summary
    logits, other = tiny.llama(0)(data.blocks.ids).logits, tiny.llama(1)(data.blocks.ids).logits
    labels = data.labels(torch.arange(8))
    expected = scores.quarc(
        scores.error_vector(logits, labels),
        scores.disagreement(logits, other.log_softmax(-1), None, labels),
        scores.relative_entropy(logits, other.log_softmax(-1), None, labels),
        0.0,
    )
    assert torch.equal(chosen.indices, expected.topk(2).indices.sort().values)


@pytest.mark.parametrize("selector", ["quarc", "acs", "evs", "el2n", "moderate"])
def test_scores_that_need_labels_say_which_do_not(selector):
    with pytest.raises(UsageError, match="needs labels and the data has none; choose res, ds or"):
        selection(selector, samples(labelled=False))


def test_unlabelled_images_are_selected_by_the_others():
    for selector in ("res", "ds", "random"):
        chosen = selection(selector, samples(labelled=False))(Net(0), 0, 0)
        assert len(chosen.indices) == 10 and chosen.summary["accuracy"] is None


@pytest.mark.parametrize("section, words", [
    ({"selector": "moderate"}, "needs samples with classes"),
    ({"selector": "forgetting"}, "needs samples with classes"),
    ({"balanced": True}, "coreset.balanced: true needs labelled images"),
])  # fmt: skip
def test_text_has_no_classes(section, words):
    data = BlockSamples(Blocks(tiny.ids(8, 12)))
    with pytest.raises(UsageError, match=words):
        Selection(CoresetSection(share=0.5, **section), data, tiny.llama(), 0)
