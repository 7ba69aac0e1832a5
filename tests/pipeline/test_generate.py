"""Text from a packed folder: greedy, sampled, limited, and errors that reach the caller."""

from __future__ import annotations

from functools import partial
from threading import Thread

import pytest
import tiny
from marks import needs_kernels
from transformers import LlamaForCausalLM, MistralConfig, MistralForCausalLM

import edgeqat
from edgeqat import native
from edgeqat.errors import UsageError
from edgeqat.hf import packed_folder
from edgeqat.native_sequences import NativeGenerator
from edgeqat.nn import convert
from edgeqat.pipeline import generate as pipeline
from edgeqat.recipe.quant import QuantSection

PROMPT = "the old river"


@pytest.fixture(params=(pytest.param("native", marks=needs_kernels), "torch"), autouse=True)
def engine(request):
    return request.param


@pytest.fixture
def generate(engine):
    return partial(pipeline.generate, engine=engine)


@pytest.fixture
def text(generate):
    return lambda folder, **options: "".join(generate(folder, PROMPT, 12, **options))


def test_greedy_text_repeats_itself(packed_folder, text):
    first = text(packed_folder)
    assert first
    assert text(packed_folder, seed=7) == first


def test_sampled_text_follows_its_seed(packed_folder, text):
    options = {"temperature": 2.0}
    assert text(packed_folder, seed=1, **options) == text(packed_folder, seed=1, **options)
    assert len({text(packed_folder, seed=seed, **options) for seed in range(3)}) > 1


def test_top_k_one_is_greedy(packed_folder, text):
    assert text(packed_folder, temperature=1.0, top_k=1) == text(packed_folder)


def test_a_small_top_p_is_greedy(packed_folder, text):
    assert text(packed_folder, temperature=1.0, top_p=1e-6) == text(packed_folder)


def test_the_prompt_is_not_repeated_and_the_length_is_kept(packed_folder, generate, text):
    found = "".join(generate(packed_folder, PROMPT, 5))
    assert not found.startswith(PROMPT)
    assert 0 < len(found) < len(text(packed_folder))


def test_an_empty_prompt_is_refused(packed_folder, generate):
    with pytest.raises(UsageError, match="prompt: it is empty"):
        list(generate(packed_folder, "", 5))


def test_more_tokens_than_positions_are_refused(packed_folder, generate):
    with pytest.raises(UsageError, match="exceed the model's 128 positions"):
        list(generate(packed_folder, PROMPT, 1000))


def test_an_error_while_generating_reaches_the_caller(packed_folder, generate, monkeypatch):
    def broken(*_, **__):
        raise RuntimeError("broken")

    monkeypatch.setattr(LlamaForCausalLM, "generate", broken)
    monkeypatch.setattr(NativeGenerator, "next", broken)
    caught = []

    def call():
        try:
            list(generate(packed_folder, PROMPT, 5))
        except RuntimeError as error:
            caught.append(str(error))

    thread = Thread(target=call, daemon=True)
    thread.start()
    thread.join(timeout=10)
    assert not thread.is_alive(), "waits forever"
    assert caught == ["broken"]


@needs_kernels
def test_a_text_longer_than_a_sliding_window_is_written(tmp_path, engine, generate, caplog):
    model = tiny.model(MistralForCausalLM, MistralConfig, sliding_window=16)
    prepared = edgeqat.prepare(model, "w4a8kv4")
    tmp_path.joinpath("packed").mkdir()
    quant = QuantSection(scheme="w4a8kv4")
    packed_folder.write(tmp_path / "packed", convert.convert(prepared), quant, tiny.tokenizer())
    assert "".join(generate(tmp_path / "packed", PROMPT, 40))
    assert not [line for line in caplog.messages if "using torch" in line]


def test_the_folder_s_generation_settings_are_not_torch_s_alone(tmp_path, generate):
    texts = []
    for penalty in (1.0, 5.0):
        model = tiny.llama()
        model.generation_config.repetition_penalty = penalty
        folder = tmp_path / str(penalty)
        folder.mkdir()
        quant = QuantSection(scheme="w4a8kv4")
        packed = convert.convert(edgeqat.prepare(model, quant=quant))
        packed_folder.write(folder, packed, quant, tiny.tokenizer())
        texts.append("".join(generate(folder, PROMPT, 24)))
    assert texts[0] == texts[1]


def test_an_unknown_engine_is_refused(packed_folder):
    with pytest.raises(UsageError, match="engine: 'gpu' is unknown; choose from native, torch"):
        list(pipeline.generate(packed_folder, PROMPT, 5, engine="gpu"))


def test_without_a_library_torch_writes_the_text(packed_folder, generate, text, monkeypatch):
    expected = "".join(pipeline.generate(packed_folder, PROMPT, 12, engine="torch"))
    monkeypatch.setattr(native, "library", lambda: None)
    assert text(packed_folder) == expected


def test_a_character_of_several_tokens_comes_whole():
    class Bytes:
        def decode(self, ids):
            return bytes(ids).decode(errors="replace")

    tokens = "a\u00e9\u2014b".encode()
    assert list(pipeline.pieces(Bytes(), tokens)) == ["a", "\u00e9", "\u2014", "b"]
    assert "".join(pipeline.pieces(Bytes(), tokens[:2])) == "a\ufffd"
