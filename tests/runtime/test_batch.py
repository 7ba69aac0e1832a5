"""Sequences computed together give the bits they give alone."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import tiny
from marks import needs_kernels

import edgeqat
from edgeqat.errors import EdgeQATError, UsageError
from edgeqat.hf import packed_folder
from edgeqat.nn import convert
from edgeqat.nn.calibration import calibrate
from edgeqat.recipe.quant import QuantSection
from edgeqat.runtime.batch import Batch, Part
from edgeqat.runtime.engine import Engine

pytestmark = needs_kernels

TEXTS = [tiny.ids(1, length, seed)[0].tolist() for seed, length in enumerate((100, 3, 41, 64))]
SCHEMES = {
    "w4a8kv4": {},
    "w4a8kv16": {},
    "w16a16kv16": {},
    "w4a4kv4": {"adaptive": {"rule": "importance", "share": 0.5}},
}


@pytest.fixture(scope="module", params=SCHEMES)
def folder(request, tmp_path_factory):
    place = tmp_path_factory.mktemp("batch")
    section = QuantSection.model_validate({"scheme": request.param, **SCHEMES[request.param]})
    prepared = edgeqat.prepare(tiny.llama(max_position_embeddings=512), quant=section)
    calibrate(prepared, iter([tiny.ids(4, 24, seed=5)]))
    packed_folder.write(place, convert.convert(prepared), section, None)
    return place


@pytest.fixture
def batch(folder):
    with Engine(folder, threads=2) as engine:
        made = Batch(engine, 4)
        yield made
        made.close()


def alone(folder, ids):
    with Engine(folder, threads=1) as engine:
        return engine.prefill(ids, every=True)


def test_prompts_and_steps_mix(folder, batch):
    expected = [alone(folder, ids) for ids in TEXTS]
    found = [[] for _ in TEXTS]
    steps = [[40, 1, 41, 1], [1, 1, 0, 1], [59, 1, 0, 61], [0, 0, 0, 1]]
    begun = [0] * len(TEXTS)
    for step in steps:
        parts, whose = [], []
        for i, count in enumerate(step):
            if count:
                ids = TEXTS[i][begun[i] : begun[i] + count]
                parts.append(Part(batch.slots[i], ids, count))
                whose.append(i)
                begun[i] += count
        for i, logits in zip(whose, batch.forward(parts), strict=True):
            found[i].append(logits)
    assert begun == [len(ids) for ids in TEXTS]
    for rows, logits in zip(found, expected, strict=True):
        assert np.array_equal(np.concatenate(rows), logits)


def test_long_prompts_are_computed_in_chunks(folder, batch):
    ids = [tiny.ids(1, length, seed)[0].tolist() for seed, length in enumerate((300, 7, 250))]
    wanted = [2, 0, 1]
    parts = [Part(*each) for each in zip(batch.slots, ids, wanted, strict=False)]
    found = batch.forward(parts)
    assert [len(logits) for logits in found] == wanted
    for text, logits, count in zip(ids, found, wanted, strict=True):
        assert np.array_equal(logits, alone(folder, text)[len(text) - count :])
    assert [slot.position for slot in batch.slots] == [300, 7, 250, 0]


def test_a_slot_goes_back_alone(folder, batch):
    batch.forward([Part(slot, TEXTS[0]) for slot in batch.slots])
    batch.slots[1].rewind(30)
    batch.slots[2].rewind(0)
    other = [7, *TEXTS[2]]
    changed = TEXTS[0][:30] + TEXTS[3]
    one, two, three = batch.forward(
        [Part(batch.slots[0], [5]), Part(batch.slots[1], TEXTS[3]), Part(batch.slots[2], other)]
    )
    assert np.array_equal(one[0], alone(folder, [*TEXTS[0], 5])[-1])
    assert np.array_equal(two[0], alone(folder, changed)[-1])
    assert np.array_equal(three[0], alone(folder, other)[-1])
    assert batch.engine.position == 0  # the engine's own sequence is another one


def test_ids_may_be_any_array(folder, batch):
    wide = np.zeros(2 * len(TEXTS[0]), np.int32)
    wide[::2] = TEXTS[0]
    (logits,) = batch.forward([Part(batch.slots[0], wide[::2])])
    assert np.array_equal(logits[0], alone(folder, TEXTS[0])[-1])


def test_a_call_that_fails_appends_nothing(folder, batch):
    one, other = batch.slots[:2]
    batch.forward([Part(one, TEXTS[0])])
    refused = {
        "ids: 999999 is not in the vocabulary": [Part(one, [5]), Part(other, [999999])],
        "ids: there are none": [Part(one, [5]), Part(other, [])],
        "parts: two of them append to one sequence": [Part(one, [5]), Part(one, [6])],
        "parts: there are none": [],
        "wanted: 2 is not from 0 to the 1 tokens": [Part(one, [5], 2)],
        "context: 600 tokens do not fit into 512": [Part(other, [5]), Part(one, [5] * 500)],
    }
    for words, parts in refused.items():
        with pytest.raises(EdgeQATError, match=words):
            batch.forward(parts)
    assert [slot.position for slot in batch.slots] == [100, 0, 0, 0]
    assert np.array_equal(batch.forward([Part(one, [5])])[0][0], alone(folder, [*TEXTS[0], 5])[-1])


def test_sequences_belong_to_their_engine(folder, batch):
    with Engine(folder) as engine, pytest.raises(EdgeQATError, match="belongs to another engine"):
        foreign = Batch(engine, 1)
        batch.forward([Part(foreign.slots[0], [5])])
    with pytest.raises(UsageError, match="cannot be copied"):
        copy.copy(batch.slots[0].sequence)
    lonely = Batch(batch.engine, 1)
    lonely.close()
    for use in (
        lambda: lonely.forward([Part(lonely.slots[0], [5])]),
        lambda: lonely.slots[0].position,
        lambda: lonely.slots[0].rewind(0),
    ):
        with pytest.raises(UsageError, match="sequence: it was closed"):
            use()
    with pytest.raises(UsageError, match="batch: 0 sequences"):
        Batch(batch.engine, 0)
    with pytest.raises(EdgeQATError, match="context: 513 is not within"):
        Batch(batch.engine, 1, 513)
