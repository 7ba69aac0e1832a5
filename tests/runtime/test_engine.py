"""The engine computes what the packed torch model computes on its integer path.

Sums of another order flip ties of rounding, and a flipped code is a whole step: logits are compared
by their cosine, tokens where the two best logits are apart.
"""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

import numpy as np
import pytest
import tiny
import torch
from marks import needs_kernels
from safetensors.torch import load_file, save_file

import edgeqat
from edgeqat import native
from edgeqat.errors import FormatError, UsageError
from edgeqat.hf import packed_folder
from edgeqat.hf.float_model import load_model, load_tokenizer
from edgeqat.nn import convert
from edgeqat.nn.blocks import decoder_layers, tapped
from edgeqat.nn.calibration import calibrate
from edgeqat.nn.packed import PackedLinear
from edgeqat.nn.residual import turn_back
from edgeqat.recipe.quant import QuantSection
from edgeqat.runtime.engine import Engine

pytestmark = needs_kernels

NOVELS = Path(os.environ.get("EDGEQAT_MODELS", "missing")) / "llama-8m-novels"
TEXT = "It was a bright cold day, and the old gentleman had not yet come down to breakfast. " * 12


def pack(folder, model, scheme, **quant):
    """Writes a packed folder; returns the torch model on its integer path."""
    folder.mkdir(exist_ok=True)
    section = QuantSection.model_validate({"scheme": scheme, **quant})
    prepared = edgeqat.prepare(model, quant=section)
    calibrate(prepared, iter([tiny.ids(4, 24, seed=5)]))
    packed = convert.convert(prepared).eval()
    packed_folder.write(folder, packed, section, None)
    for module in packed.modules():
        if isinstance(module, PackedLinear):
            module.integer = True
    return packed


@torch.no_grad()
def torch_logits(model, ids):
    return model(torch.tensor([ids]), use_cache=False).logits[0].numpy()


def cosine(a, b):
    return float((a * b).sum() / np.linalg.norm(a) / np.linalg.norm(b))


@pytest.mark.parametrize(
    ("scheme", "least"),
    [
        *[(s, 0.9998) for s in ("w8a8kv8", "w6a6kv6", "w4a4kv4", "w3a3kv3", "w2a8kv2", "w1a8kv8")],
        ("w4a8kv16", 0.9998),
        # One 2-bit code that rounds the other way moves a random model's logits by percents:
        # torch's own integer and float paths agree to 0.92 .. 1 here.
        ("w4a2kv4", 0.9),
    ],
)
def test_logits_of_every_width_equal_torch(scheme, least, tmp_path):
    model, ids = pack(tmp_path, tiny.llama(), scheme), tiny.ids(1, 24)[0].tolist()
    with Engine(tmp_path, threads=2) as engine:
        assert cosine(engine.prefill(ids, every=True), torch_logits(model, ids)) >= least


@pytest.mark.parametrize("sinks", [0, 4, 40])
def test_one_pass_equals_token_by_token_bit_for_bit(sinks, tmp_path):
    pack(tmp_path, tiny.llama(), "w4a8kv4", kv={"sink_tokens": sinks})
    ids = tiny.ids(1, 100)[0].tolist()
    with Engine(tmp_path, threads=2) as engine, Engine(tmp_path, threads=1) as other:
        once = engine.prefill(ids, every=True)
        steps = np.stack([other.decode(token) for token in ids])  # two engines in one process
        assert np.array_equal(once, steps)
        engine.reset()
        engine.prefill(ids[:37])
        assert np.array_equal(engine.prefill(ids[37:]), once[-1])


def test_traced_layers_are_those_of_torch_chunk_by_chunk(tmp_path):
    model = pack(tmp_path, tiny.llama(max_position_embeddings=512), "w4a8kv4")
    ids = tiny.ids(1, 300, seed=2)  # more than the engine computes at once
    names = decoder_layers(model)
    with torch.no_grad(), tapped(model, names) as expected:
        model(input_ids=ids, use_cache=False)
    with Engine(tmp_path, threads=2) as engine:
        logits, layers = engine.trace(ids[0].tolist())
        engine.reset()
        np.testing.assert_array_equal(logits, engine.prefill(ids[0].tolist(), every=True))
    assert layers.shape == (len(names), 300, model.config.hidden_size)
    turns = turn_back(model)
    own_layers = [turns[n](x) for n, x in zip(names, torch.from_numpy(layers), strict=True)]
    for own, other in zip(own_layers, expected, strict=True):
        assert torch.cosine_similarity(own, other[0], dim=-1).min() > 0.999
        assert torch.allclose(own.norm(dim=-1), other[0].norm(dim=-1), rtol=0.02)


def test_every_instruction_set_gives_the_same_logits(tmp_path, choose_isa):
    pack(tmp_path, tiny.llama(), "w3a8kv4")
    found, ids = [], tiny.ids(1, 30)[0].tolist()
    for isa in (name for name, available in native.isas().items() if available):
        choose_isa(isa)
        with Engine(tmp_path, threads=2) as engine:
            assert engine.isa == isa
            found.append(engine.prefill(ids, every=True))
    assert all(np.array_equal(logits, found[0]) for logits in found)


def test_the_fp16_baseline_is_close_to_the_packed_model(tmp_path):
    model, ids = pack(tmp_path, tiny.llama(), "w8a8kv8"), tiny.ids(1, 24)[0].tolist()
    with Engine(tmp_path, half=True) as engine:
        assert cosine(engine.prefill(ids, every=True), torch_logits(model, ids)) >= 0.999


def test_generation_follows_its_seed_and_stops(tmp_path):
    pack(tmp_path, tiny.llama(), "w4a8kv4")
    ids = tiny.ids(1, 8)[0].tolist()

    def text(**options):
        with Engine(tmp_path) as engine:
            return list(engine.generate(ids, 12, **options))

    assert text() == text(temperature=1.0, top_k=1) == text(temperature=1.0, top_p=1e-6)
    assert text(temperature=2.0, seed=3) == text(temperature=2.0, seed=3)
    assert len({tuple(text(temperature=2.0, seed=seed)) for seed in range(4)}) > 1


def test_an_engine_closed_while_it_generates_says_so(tmp_path):
    pack(tmp_path, tiny.llama(eos_token_id=None), "w4a8kv4")
    engine = Engine(tmp_path)
    tokens = engine.generate([5, 6], 20)
    next(tokens)
    engine.close()
    with pytest.raises(UsageError, match="engine: it was closed"):
        list(tokens)


def test_more_tokens_than_the_context_are_refused(tmp_path):
    pack(tmp_path, tiny.llama(), "w4a8kv4")
    with Engine(tmp_path, context=16) as engine:
        engine.prefill([5] * 16)
        with pytest.raises(FormatError, match="context: 17 tokens do not fit into 16"):
            engine.decode(5)
        engine.reset()
        engine.decode(5)
    with pytest.raises(FormatError, match="context: 129 is not within the model's 128 positions"):
        Engine(tmp_path, context=129)


@pytest.mark.parametrize("tied", [True, False])
def test_layers_that_were_left_out_stay_float(tied, tmp_path):
    skip = ["lm_head", "model.layers.0.mlp.*"]
    model = pack(tmp_path, tiny.llama(tie_word_embeddings=tied), "w4a8kv4", skip=skip)
    ids = tiny.ids(1, 24)[0].tolist()
    with Engine(tmp_path) as engine:
        assert cosine(engine.prefill(ids, every=True), torch_logits(model, ids)) >= 0.9999


def mixed(folder, scheme="w4a4kv4", sinks=4, **adaptive):
    model = tiny.llama(num_hidden_layers=4)
    weight = {"init": "mse"}  # compensated weights would follow the widths of activations
    return pack(folder, model, scheme, adaptive=adaptive, kv={"sink_tokens": sinks}, weight=weight)


@pytest.mark.parametrize("rule", ["importance", "reversed", "random", "layers"])
def test_tokens_of_two_widths_are_those_of_torch(rule, tmp_path):
    model, ids = mixed(tmp_path / "some", rule=rule, share=0.4), tiny.ids(1, 40)[0].tolist()
    most = mixed(tmp_path / "most", rule=rule, share=0.9)
    with Engine(tmp_path / "some", threads=2) as engine:
        found = engine.prefill(ids, every=True)
    # 4-bit codes that round the other way move a random model's logits, other widths move them more
    alike, other = cosine(found, torch_logits(model, ids)), cosine(found, torch_logits(most, ids))
    assert alike >= 0.99
    assert 1 - other > 3 * (1 - alike)


@pytest.mark.parametrize(("low", "high"), [("w4a4kv4", "w4a8kv8"), ("w4a4kv16", "w4a8kv16")])
def test_all_tokens_high_is_the_scheme_of_8_bits(low, high, tmp_path):
    ids = tiny.ids(1, 40)[0].tolist()
    mixed(tmp_path / "low", low, rule="random", share=1)
    mixed(tmp_path / "high", high)
    with Engine(tmp_path / "low") as one, Engine(tmp_path / "high") as other:
        assert cosine(one.prefill(ids, every=True), other.prefill(ids, every=True)) > 0.999999


@pytest.mark.parametrize("sinks", [0, 4])
def test_tokens_keep_the_width_they_were_given(sinks, tmp_path):
    mixed(tmp_path, sinks=sinks, share=0.5)
    ids = tiny.ids(1, 100)[0].tolist()
    with Engine(tmp_path, threads=2) as engine, Engine(tmp_path, threads=1) as other:
        once = engine.prefill(ids, every=True)
        assert np.array_equal(once, np.stack([other.decode(token) for token in ids]))
        engine.rewind(1)
        engine.prefill(ids[1:37])
        engine.rewind(20)
        assert np.array_equal(engine.prefill(ids[20:]), once[-1])


def test_a_rewound_engine_goes_on_as_if_nothing_had_been(tmp_path):
    pack(tmp_path, tiny.llama(), "w4a8kv4")
    ids = tiny.ids(1, 40)[0].tolist()
    with Engine(tmp_path) as engine:
        once = engine.prefill(ids)
        engine.rewind(17)
        assert engine.position == 17
        engine.decode(9)
        engine.rewind(2)
        assert np.array_equal(engine.prefill(ids[2:]), once)
        with pytest.raises(FormatError, match="position: 41 is not within the 40 tokens"):
            engine.rewind(41)


@pytest.mark.parametrize("ids", [[], [tiny.VOCABULARY], [-1]])
def test_impossible_ids_are_refused(ids, tmp_path):
    pack(tmp_path, tiny.llama(), "w4a8kv4")
    with Engine(tmp_path) as engine, pytest.raises(FormatError, match=r"^ids: "):
        engine.prefill(ids)


@pytest.mark.parametrize(
    ("scheme", "quant"),
    [
        ("w4a16kv16", {}),
        ("w4a16kv4", {}),
        ("w16a8kv4", {}),
        ("w4a8kv4", {"embedding_bits": 16}),
        ("w4a8kv4", {"activation": {"mode": "static"}}),
    ],
)
def test_what_only_torch_runs_is_named(scheme, quant, tmp_path):
    pack(tmp_path, tiny.llama(), scheme, **quant)
    with pytest.raises(native.UnsupportedModel, match=r"runs? in torch only"):
        Engine(tmp_path)


@pytest.mark.parametrize("adaptive", [{}, {"share": 0.5}])
def test_a_damaged_folder_is_one_line_and_never_a_crash(adaptive, tmp_path):
    """Mutated headers and sizes: an error of one line, or a model that still runs."""
    pack(tmp_path / "sound", tiny.llama(), "w4a8kv4", adaptive=adaptive)
    choose, broken = np.random.default_rng(0), tmp_path / "broken"
    shutil.copytree(tmp_path / "sound", broken)
    weights = (tmp_path / "sound" / "model.safetensors").read_bytes()
    config = (tmp_path / "sound" / "config.json").read_bytes()
    header = 8 + int.from_bytes(weights[:8], "little")
    refused = 0
    for round in range(int(os.environ.get("EDGEQAT_FUZZ", "300"))):
        data, text = bytearray(weights), bytearray(config)
        target, end = (data, header) if round % 2 else (text, len(text))
        for _ in range(choose.integers(1, 4)):
            target[choose.integers(0, end)] = choose.integers(0, 256)
        if round % 5 == 0:
            data = data[: choose.integers(0, len(data))]
        (broken / "model.safetensors").write_bytes(data)
        (broken / "config.json").write_bytes(text)
        try:
            handle = native.open_engine(str(broken), 1, 0, False)
        except (FormatError, native.UnsupportedModel) as error:
            refused += 1
            assert "\n" not in str(error) and ":" in str(error)
            continue
        logits = np.empty(native.info(handle).vocabulary, np.float32)
        native.forward(handle, np.array([5, 6, 7], np.int32), logits, False)
        native.close(handle)
    assert refused


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"kind": "embedding", "input_bits": 16}, "scheme: float activations with packed weights"),
        ({"bits": 2**64}, r"bits: a whole number from 1 to 8 was expected"),
    ],
)
def test_what_no_layer_is_packed_as_is_refused(fields, words, tmp_path):
    pack(tmp_path, tiny.llama(), "w4a8kv4")
    file = tmp_path / "config.json"
    config = json.loads(file.read_text(encoding="utf-8"))
    config["quantization_config"]["layers"]["model.layers.1.mlp.up_proj"] |= fields
    file.write_text(json.dumps(config), encoding="utf-8")
    with pytest.raises((FormatError, native.UnsupportedModel), match=words):
        native.open_engine(str(tmp_path), 1, 0, False)


def test_weights_that_another_tool_wrote_anew_are_refused(tmp_path):
    pack(tmp_path, tiny.llama(), "w4a8kv4")
    file = tmp_path / "model.safetensors"
    save_file(load_file(file), file)  # in an order, and at offsets, of its own
    with pytest.raises(FormatError, match="does not start on 64 bytes; copy the folder again"):
        native.open_engine(str(tmp_path), 1, 0, False)


@pytest.mark.parametrize("scheme", ["w4a8kv1", "w4a1kv4"])
def test_only_weights_have_one_bit(scheme, tmp_path):
    pack(tmp_path, tiny.llama(), "w4a8kv4")
    file = tmp_path / "config.json"
    file.write_text(file.read_text().replace('"w4a8kv4"', f'"{scheme}"'))
    with pytest.raises(FormatError, match=f"scheme: '{scheme}' asks for 1-bit"):
        Engine(tmp_path)
    with pytest.raises(FormatError, match=f"scheme: '{scheme}' asks for 1-bit"):
        Engine.random("llama-8m", scheme)


def test_a_folder_of_another_kind_is_refused(tmp_path, model_folder):
    with pytest.raises(FormatError, match=r"folder: .* cannot be read"):
        Engine(tmp_path)
    with pytest.raises(FormatError, match="quantization_config: there is none"):
        Engine(model_folder)


def test_the_written_folder_of_a_run_generates(packed_folder):
    config = json.loads((packed_folder / "config.json").read_text())
    with Engine(packed_folder) as engine:
        assert engine.vocabulary == config["vocab_size"]
        assert engine.matrix_bytes < (packed_folder / "model.safetensors").stat().st_size


@pytest.mark.parametrize("tied", [True, False])
def test_an_embedding_of_its_own_is_counted(tied, tmp_path):
    pack(tmp_path, tiny.llama(tie_word_embeddings=tied), "w4a8kv4")
    with Engine(tmp_path) as engine:
        rows, columns = engine.vocabulary, tiny.shape()["hidden_size"]
        assert engine.embedding_bytes == (0 if tied else rows * (columns + 2))


@pytest.mark.skipif(not NOVELS.is_dir(), reason="EDGEQAT_MODELS has no llama-8m-novels")
@pytest.mark.parametrize(
    ("scheme", "alike", "same"), [("w4a8kv4", 0.9999, 0.99), ("w3a4kv3", 0.997, 0.9)]
)
def test_a_real_model_agrees_with_torch(scheme, alike, same, tmp_path):
    model = pack(tmp_path, load_model(str(NOVELS)).eval(), scheme)
    ids = load_tokenizer(str(NOVELS))(TEXT)["input_ids"][:250]
    expected = torch_logits(model, ids)
    with Engine(tmp_path) as engine:
        found = engine.prefill(ids, every=True)
    best = np.sort(expected, axis=1)
    apart = best[:, -1] - best[:, -2] > 0.05
    agreed = (found.argmax(1) == expected.argmax(1))[apart].mean()
    print(f"{scheme}: cosine {cosine(found, expected):.6f}, same token {agreed:.4f}")
    assert cosine(found, expected) >= alike
    assert agreed >= same
