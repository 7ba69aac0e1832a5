"""Guessed tokens change how many passes a text takes, and never the text."""

from __future__ import annotations

import copy

import numpy as np
import pytest
from marks import needs_kernels

import edgeqat
from edgeqat import native
from edgeqat.errors import UsageError
from edgeqat.hf import float_model
from edgeqat.native_sequences import NativeGenerator
from edgeqat.runtime.engine import Engine
from edgeqat.runtime.sequence import Sequence

pytestmark = needs_kernels

STORY = (
    "The import statement combines two operations; it searches for the named module, then it binds "
    "the results of that search to a name in the local scope. "
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    place = tmp_path_factory.mktemp("lookup") / "packed"
    tokenizer = float_model.load_tokenizer("demo")
    edgeqat.save(
        edgeqat.prepare(float_model.load_model("demo"), "w4a8kv4"), place, tokenizer=tokenizer
    )
    return place


@pytest.fixture
def engine(folder):
    with Engine(folder, threads=1) as opened:
        yield opened


def prompt():
    return float_model.load_tokenizer("demo").encode(STORY * 3)


def step_by_step(engine, ids, tokens, sampling=(0.0, 0, 1.0, 0)):
    """Tokens of single passes, drawn from their logits."""
    sampler, given = native.Sampler(*sampling), []
    engine.reset()
    logits = engine.prefill(ids)
    while len(given) < tokens:
        token = sampler(logits)
        if engine.is_stop(token):
            break
        given.append(token)
        logits = engine.decode(token)
    return given


@pytest.mark.parametrize("sampling", [(0.0, 0, 1.0, 0), (0.7, 0, 0.9, 3), (1.5, 20, 1.0, 4)])
@pytest.mark.parametrize("tokens", [1, 2, 60])
def test_the_tokens_are_those_of_single_steps(engine, sampling, tokens):
    ids = prompt()
    expected = step_by_step(engine, ids, tokens, sampling)
    for lookup in (True, False):
        engine.reset()
        assert list(engine.generate(ids, tokens, *sampling, lookup=lookup)) == expected
        # the last token is not read: a text may fill the context and one more
        assert engine.position == len(ids) + len(expected) - (len(expected) == tokens)


def test_guesses_are_counted(engine):
    """How many are made depends on the time that passes take; kernels/tests/lookup.cc has rules."""
    ids, sampler = prompt(), native.Sampler(0.0, 0, 1.0, 0)
    with engine.lend() as handle:
        for lookup in (True, False):
            engine.reset()
            generator = NativeGenerator(handle, sampler, [], ids, 100, lookup)
            assert sum(1 for _ in iter(generator.next, None)) == 100
            checked, right = generator.guesses()
            assert 0 <= right <= checked and (lookup or not checked)
        with pytest.raises(UsageError, match="generator: it cannot be copied"):
            copy.copy(generator)


def test_what_was_read_before_is_known(engine):
    ids = prompt()
    sequence = Sequence(engine)
    expected = list(sequence.generate(ids, 20))
    first = next(sequence.generate([*ids, *expected, 5], 20))  # given up behind its first token
    plain = step_by_step(engine, [*ids, *expected, 5], 20)
    assert first == plain[0]
    sequence.forget()
    list(sequence.generate(ids, 20))
    assert list(sequence.generate([*ids, *expected, 5], 20)) == plain
    assert sequence.reused >= len(ids)


def test_a_text_ends_where_the_context_does(folder):
    ids = prompt()
    with Engine(folder, threads=1, context=len(ids) + 5) as engine:
        found = list(engine.generate(ids, 6))
        assert len(found) == 6 and engine.position == len(ids) + 5
        engine.reset()
        with pytest.raises(native.EdgeQATError, match="context: "):
            list(engine.generate(ids, 7))


def test_a_generator_reads_its_text_once(engine):
    assert list(engine.generate([5, 6, 7], 0)) == []
    with pytest.raises(native.EdgeQATError, match="ids: there are none"):
        list(engine.generate([], 5))
    assert np.isfinite(engine.prefill([5])).all()


def test_a_text_given_up_leaves_no_guesses(engine):
    """What is appended next stands behind what was given, whatever was guessed right."""
    ids = prompt()
    for taken in (1, 2, 30, 31, 32, 33):
        engine.reset()
        tokens = engine.generate(ids, 60)
        given = [next(tokens) for _ in range(taken)]
        tokens.close()
        assert engine.position == len(ids) + taken - 1
        found = engine.decode(given[-1])
        engine.reset()
        engine.prefill([*ids, *given[:-1]])
        assert np.array_equal(found, engine.decode(given[-1]))


def test_ids_may_be_any_array(engine):
    ids = prompt()
    expected = list(engine.generate(ids, 5))
    wide = np.zeros(2 * len(ids), np.int64)
    wide[::2] = ids
    for given in (np.array([ids]), wide[::2], np.array(ids[::-1], np.int32)[::-1]):
        engine.reset()
        assert list(engine.generate(given, 5)) == expected
    engine.reset()
    assert list(engine.generate(ids, 0)) == [] and engine.position == len(ids)
