"""The engine computes every family that it knows as torch does, in one pass and token by token,
with windows and embeddings of all kinds. Comparisons are those of test_engine.
"""

from __future__ import annotations

import architectures
import numpy as np
import pytest
import tiny
from marks import needs_kernels
from test_engine import cosine, pack, torch_logits

from edgeqat.families import FAMILIES
from edgeqat.runtime.engine import Engine

pytestmark = needs_kernels

LLAMA3 = {
    "rope_type": "llama3",
    "rope_theta": 1000.0,
    "factor": 4.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 64,
}
ODD = {"head_dim": 20, "hidden_size": 72, "intermediate_size": 172, "tie_word_embeddings": False}
MODELS = {
    "llama": lambda: tiny.llama(),
    "biases, odd sizes": lambda: tiny.llama(**ODD, attention_bias=True, mlp_bias=True),
    "wide heads": lambda: tiny.llama(head_dim=160),
    "llama3 rope": lambda: tiny.llama(rope_parameters=LLAMA3),
    "linear rope": lambda: tiny.llama(
        rope_parameters={"rope_type": "linear", "rope_theta": 1000.0, "factor": 4.0}
    ),
    **{
        name: lambda row=row: tiny.model(row[0], row[1], **row[2])
        for name, row in architectures.FAMILIES.items()
        if FAMILIES[name].engine and name != "llama"
    },
}


@pytest.mark.parametrize("name", MODELS)
def test_logits_of_every_family_equal_torch(name, tmp_path):
    model, cosines = pack(tmp_path, MODELS[name](), "w4a8kv4"), []
    with Engine(tmp_path, threads=2) as engine:
        for seed in range(9):  # in some of them a code rounds the other way
            ids = tiny.ids(1, 24, seed)[0].tolist()
            engine.reset()
            cosines.append(cosine(engine.prefill(ids, every=True), torch_logits(model, ids)))
    unnormed = name in ("olmo2", "olmo3", "exaone4")  # layers read the residual stream as it is
    assert np.median(cosines) >= (0.9998 if unnormed else 0.9999)
    assert min(cosines) >= (0.999 if unnormed else 0.9995)


@pytest.mark.parametrize("name", MODELS)
def test_one_pass_of_every_family_equals_token_by_token(name, tmp_path):
    pack(tmp_path, MODELS[name](), "w4a8kv4")
    ids = tiny.ids(1, 70)[0].tolist()
    with Engine(tmp_path, threads=2) as engine, Engine(tmp_path, threads=1) as other:
        once = engine.prefill(ids, every=True)
        assert np.array_equal(once, np.stack([other.decode(token) for token in ids]))


@pytest.mark.parametrize("scheme", ["w4a8kv4", "w4a8kv16"])
def test_a_window_moves_over_a_long_text(scheme, tmp_path):
    """Far beyond the window, the sinks and what is computed at once."""
    row = architectures.FAMILIES["gemma3_text"]
    changes = {**row[2], "sliding_window": 50, "max_position_embeddings": 512}
    model = pack(tmp_path, tiny.model(row[0], row[1], **changes), scheme)
    ids = tiny.ids(1, 400)[0].tolist()
    with Engine(tmp_path, threads=2) as engine:
        assert engine.context == 512
        once = engine.prefill(ids, every=True)
        engine.reset()
        engine.prefill(ids[:-3])
        steps = [engine.decode(token) for token in ids[-3:]]
    assert np.array_equal(once[-3:], np.stack(steps))
    assert cosine(once[300:], torch_logits(model, ids)[300:]) >= 0.9998
