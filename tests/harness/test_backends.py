"""Backends: log-likelihoods against the model's own logits, with and without shared prefixes."""

from __future__ import annotations

import pytest
import tiny
import torch
from marks import needs_kernels

from edgeqat.errors import UsageError
from edgeqat.harness.backends import Torch, open_backend
from edgeqat.runtime.sampling import GREEDY, Sampling

STEM = tiny.ids(1, 9, seed=7)[0].tolist()
SEQUENCES = [
    [*STEM, 5, 6, 7],
    [*STEM, 5, 9],
    [*STEM, 8],
    *tiny.ids(3, 6, seed=3).tolist(),
    *tiny.ids(1, 20, seed=4).tolist(),
]  # fmt: skip
COUNTS = [3, 2, 1, 5, 5, 2, 19]
SLACK = 0.05  # in nats: rounding of another order flips codes now and then


def by_hand(model, sequence, count):
    with torch.no_grad():
        logits = model(torch.tensor([sequence[:-1]]), use_cache=False).logits[0].log_softmax(-1)
    rows, target = logits[-count:], torch.tensor(sequence[-count:])
    greedy = bool((rows.argmax(-1) == target).all())
    return rows.gather(1, target[:, None]).sum().item(), greedy


@pytest.mark.parametrize("batch_size", [1, 3, 64])
def test_a_float_model_scores_what_its_logits_say(batch_size):
    model = tiny.llama()
    found = Torch("float", model, tiny.tokenizer(), batch_size).score(SEQUENCES, COUNTS)
    for own, sequence, count in zip(found, SEQUENCES, COUNTS, strict=True):
        value, greedy = by_hand(model, sequence, count)
        assert own[0] == pytest.approx(value, abs=1e-4)
        assert own[1] == greedy


def test_the_most_likely_answer_is_said_to_be():
    model = tiny.llama()
    with torch.no_grad():
        best = int(model(torch.tensor([STEM])).logits[0, -1].argmax())
    found = Torch("float", model, tiny.tokenizer(), 4).score([[*STEM, best], [*STEM, 3]], [1, 1])
    assert [greedy for _, greedy in found] == [True, best == 3]


@pytest.mark.parametrize(
    "name", ["fake-quant", "packed", pytest.param("native", marks=needs_kernels)]
)
def test_backends_of_a_packed_folder_agree(packed_folder, name):
    reference = open_backend("fake-quant", str(packed_folder)).model
    opened = open_backend(name, str(packed_folder), threads=1)
    done = []
    found = opened.score(SEQUENCES, COUNTS, done.append)
    opened.close()
    assert sum(done) == len(SEQUENCES)
    for own, sequence, count in zip(found, SEQUENCES, COUNTS, strict=True):
        assert own[0] == pytest.approx(by_hand(reference, sequence, count)[0], abs=SLACK * count)


@needs_kernels
def test_the_engine_gives_the_same_in_any_order(packed_folder):
    opened = open_backend("native", str(packed_folder), threads=1)
    found = opened.score(SEQUENCES, COUNTS)
    for number, (sequence, count) in enumerate(zip(SEQUENCES, COUNTS, strict=True)):
        assert opened.score([sequence], [count])[0][0] == pytest.approx(found[number][0], abs=1e-3)
    whole = [len(sequence) - 1 for sequence in SEQUENCES]
    mixed = opened.score([*SEQUENCES, *SEQUENCES], [*COUNTS, *whole])
    alone = opened.score(SEQUENCES, whole)
    assert [v for v, _ in mixed[len(whole) :]] == pytest.approx([v for v, _ in alone], abs=1e-3)
    opened.close()


@pytest.mark.parametrize("name", ["fake-quant", pytest.param("native", marks=needs_kernels)])
def test_text_is_greedy_and_ends_at_a_stop(packed_folder, name):
    opened = open_backend(name, str(packed_folder), threads=1)
    prompts = [STEM, STEM[:4]]
    whole = opened.generate(prompts, 8, [], GREEDY)
    assert [len(tokens) for tokens in whole] == [8, 8]
    text = opened.tokenizer.decode(whole[0])
    stop = text[2:4]
    cut = opened.generate(prompts[:1], 8, [stop], GREEDY)[0]
    assert whole[0][: len(cut)] == cut
    assert stop in opened.tokenizer.decode(cut)
    assert len(cut) < 8
    opened.close()


def test_an_unknown_backend_is_refused(packed_folder):
    with pytest.raises(UsageError, match="backend: 'nativ' is unknown; did you mean 'native'"):
        open_backend("nativ", str(packed_folder))


def test_float_of_a_packed_folder_is_the_model_it_was_made_from(packed_folder, model_folder):
    opened = open_backend("float", str(packed_folder))
    ids = tiny.ids()
    with torch.no_grad():
        assert torch.equal(opened.model(ids).logits, tiny.llama()(ids).logits)


def test_an_answer_ends_with_the_text_whatever_is_beside_it():
    model, first = tiny.llama(), STEM
    alone = Torch("float", model, tiny.tokenizer(), 1)
    whole = alone.generate([first], 8, [], GREEDY)[0]
    model.generation_config.eos_token_id = [whole[2]]
    expected = [alone.generate([own], 8, [], GREEDY)[0] for own in (first, STEM[:4])]
    together = Torch("float", model, tiny.tokenizer(), 2)
    assert together.generate([first, STEM[:4]], 8, [], GREEDY) == expected
    assert expected[0] == whole[: whole.index(whole[2]) + 1]


def test_a_stop_string_is_looked_for_in_new_tokens_alone():
    opened = Torch("float", tiny.llama(), tiny.tokenizer(), 2)
    (whole,) = opened.generate([STEM], 8, [], GREEDY)
    given, new = (opened.tokenizer.decode(own) for own in (STEM, whole))
    for across in (given[-2:] + new[0], given[-3:]):  # in the prompt, or begun there
        assert across not in new
        assert opened.generate([STEM], 8, [across], GREEDY)[0] == whole
    ended = opened.generate([STEM, STEM[:4]], 8, [new[1:4]], GREEDY)[0]
    assert len(ended) < 8
    assert new[1:4] in opened.tokenizer.decode(ended)


@needs_kernels
def test_equal_requests_are_sampled_differently(packed_folder):
    opened = open_backend("native", str(packed_folder), threads=1)
    texts = opened.generate([STEM] * 4, 12, [], Sampling(temperature=2.0))
    assert len(set(map(tuple, texts))) > 1
    texts += opened.generate([STEM], 12, [], Sampling(temperature=2.0))
    assert texts[4] != texts[0]
    opened.close()


def test_a_penalty_of_the_folder_does_not_part_torch_from_the_engine():
    model = tiny.llama()
    expected = Torch("float", tiny.llama(), tiny.tokenizer(), 1).generate([STEM], 24, [], GREEDY)
    model.generation_config.repetition_penalty = 5.0
    assert Torch("float", model, tiny.tokenizer(), 1).generate([STEM], 24, [], GREEDY) == expected
