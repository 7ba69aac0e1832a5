"""One pass against decoding against the float model: numbers by hand, and through the command."""

from __future__ import annotations

import json
import math

import pytest
import tiny
import torch
from marks import needs_kernels

import edgeqat
from edgeqat.cli import run
from edgeqat.data.text import Blocks, held_out_blocks, load_blocks
from edgeqat.errors import UsageError
from edgeqat.evaluate.agreement import _Totals, agreement, decoded
from edgeqat.evaluate.average_bits import WidthMeter
from edgeqat.evaluate.perplexity import perplexity
from edgeqat.nn import convert
from edgeqat.nn.calibration import calibrate
from edgeqat.nn.layers import attentions
from edgeqat.nn.residual import Rotation
from edgeqat.nn.switch import quantizers_disabled
from edgeqat.recipe.data import DataSection
from edgeqat.recipe.quant import QuantSection
from edgeqat.scheme import Scheme

BLOCKS = Blocks(tiny.ids(6, 20))


def packed(scheme, **quant):
    section = QuantSection.model_validate({"scheme": scheme, **quant})
    model = edgeqat.prepare(tiny.llama(num_hidden_layers=3), quant=section)
    calibrate(model, iter([tiny.ids(8, 32, seed=3)]))
    return convert.convert(model).eval()


def found(model, scheme, **options):
    return agreement(model, BLOCKS, Scheme.parse(scheme), **options)


@pytest.mark.parametrize("adaptive", [None, 0.5])
@pytest.mark.parametrize("scheme", ["w4a8kv4", "w4a4kv2", "w4a8"])
def test_what_is_served_is_what_was_trained(scheme, adaptive):
    if scheme == "w4a8" and adaptive:
        scheme = "w4a4"
    model = packed(scheme, adaptive={"share": adaptive})
    result = found(model, scheme)
    one_pass, decode = result["perplexity"]["one_pass"], result["perplexity"]["decode"]
    assert one_pass == pytest.approx(perplexity(model, BLOCKS), rel=0.01)
    assert decode == pytest.approx(one_pass, rel=1e-6)
    assert result["same_top"] == 1
    assert result["kl"] is None


def test_float32_serves_nearly_what_was_trained():
    model = packed("w8a8kv4")
    result = found(model, "w8a8kv4", exact=False)
    one_pass, decode = result["perplexity"]["one_pass"], result["perplexity"]["decode"]
    assert one_pass == pytest.approx(perplexity(model, BLOCKS), rel=1e-6)
    assert decode == pytest.approx(one_pass, rel=3e-3)
    assert result["same_top"] >= 0.95  # of 114


def test_the_float_model_by_hand():
    model, floating = packed("w3a8kv3"), tiny.llama(num_hidden_layers=3)
    result = found(model, "w3a8kv3", floating=floating, exact=False)
    with torch.no_grad():
        own, target = (m(BLOCKS.ids).logits[:, :-1].log_softmax(-1) for m in (model, floating))
    divergence = (target.exp() * (target - own)).sum(-1)
    assert result["kl"]["mean"] == pytest.approx(divergence.mean().item(), rel=1e-4)
    assert result["kl"]["p99"] == pytest.approx(
        divergence.flatten().quantile(0.99).item(), rel=1e-4
    )
    same = (own.argmax(-1) == target.argmax(-1)).float().mean().item()
    assert result["same_top_float"] == pytest.approx(same)
    assert 0 < result["kl"]["mean"] < result["kl"]["p99"]


def test_errors_of_layers_by_hand():
    model, floating = packed("w3a8kv3"), tiny.llama(num_hidden_layers=3)
    result = found(model, "w3a8kv3", floating=floating, exact=False, mode="one-pass")
    with torch.no_grad():
        own, target = (
            m.model(BLOCKS.ids, output_hidden_states=True).hidden_states for m in (model, floating)
        )
    back = Rotation(model.config.hidden_size).back
    # the last of transformers' list is behind the norm
    for layer in range(2):
        error = (back(own[layer + 1]) - target[layer + 1]).square().sum()
        expected = (error / target[layer + 1].square().sum()).item()
        assert result["layers"][layer]["error"] == pytest.approx(expected, rel=1e-3)
        assert result["layers"][layer]["name"] == f"model.layers.{layer}"
    assert len(result["layers"]) == 3


def test_the_float_model_is_at_no_distance_from_itself():
    model = edgeqat.prepare(tiny.llama(), "w4a8kv4").eval()
    with quantizers_disabled(model):
        result = found(model, "w4a8kv4", floating=tiny.llama())
    assert result["kl"]["mean"] == pytest.approx(0, abs=1e-6)
    assert result["same_top_float"] == result["same_top"] == 1


def test_a_mode_computes_its_part_only():
    model = packed("w4a8kv4")
    one = found(model, "w4a8kv4", mode="one-pass")
    assert one["perplexity"]["decode"] is one["same_top"] is None
    two = found(model, "w4a8kv4", mode="decode")
    assert two["perplexity"]["one_pass"] is None
    assert two["perplexity"]["decode"] == pytest.approx(one["perplexity"]["one_pass"], rel=3e-3)
    assert one["average_bits"] == two["average_bits"] == {"activations": 8.0, "kv": 4 + 4 * 4 / 20}


def test_a_baseline_that_cannot_decode_is_evaluated_in_one_pass():
    model = packed("w4a8kv2", adaptive={"share": 0.5, "rule": "zipcache"})
    assert found(model, "w4a8kv2")["perplexity"]["decode"] is None
    with pytest.raises(UsageError, match="mode: the scheme's rule zipcache cannot decode"):
        found(model, "w4a8kv2", mode="decode")


@torch.no_grad()
def test_decoding_knows_nothing_of_what_comes():
    model, ids = packed("w4a8kv4"), tiny.ids(2, 12)
    assert torch.equal(decoded(model, ids)[:, :8], decoded(model, ids[:, :8]))


def test_the_meter_counts_what_was_used():
    model = packed("w4a4kv2", kv={"sink_tokens": 2})
    with WidthMeter(model, Scheme.parse("w4a4kv2")) as meter, torch.no_grad():
        model(tiny.ids(3, 12))
        with meter.paused():
            model(tiny.ids(3, 4))
    assert meter.average_bits() == {"activations": 4.0, "kv": 2 + 6 * 2 / 12}
    assert meter.shares()["by_layer"] == [0, 0, 0]


def test_held_out_blocks_are_those_of_training(text_file, tmp_path):
    (tmp_path / "valid.txt").write_text(tiny.text(900, seed=4), encoding="utf-8")
    for data in (
        DataSection(root=str(text_file), context=32),
        DataSection(root=str(text_file), context=32, valid=str(tmp_path / "valid.txt")),
    ):
        expected = load_blocks(data, tiny.tokenizer())[1].ids
        assert torch.equal(held_out_blocks(data, tiny.tokenizer()).ids, expected)


def test_a_float_model_of_another_shape_is_compared_without_its_layers():
    model = packed("w4a8kv4")
    own = found(model, "w4a8kv4", floating=tiny.llama(num_hidden_layers=3), mode="one-pass")
    assert [layer["name"] for layer in own["layers"]] == [f"model.layers.{n}" for n in range(3)]
    wide = {"num_hidden_layers": 3, "hidden_size": 96}
    for other in ({"num_hidden_layers": 4}, {"num_hidden_layers": 2}, wide):
        result = found(model, "w4a8kv4", floating=tiny.llama(**other), mode="one-pass")
        assert result["layers"] is None
        assert result["kl"]["mean"] > 0


def test_the_command_writes_the_file_of_the_contract(
    packed_folder, model_folder, text_file, tmp_path, capsys
):
    output = tmp_path / "eval.json"
    arguments = ["eval", packed_folder, "--data", text_file, "--against", model_folder]
    assert run([str(a) for a in [*arguments, "--output", output, "--blocks", 3]]) == 0
    result = json.loads(output.read_text(encoding="utf-8"))
    assert set(result) >= {"perplexity", "kl", "same_top", "average_bits", "evaluation"}
    assert set(result["perplexity"]) == {"one_pass", "decode"}
    assert set(result["kl"]) == {"mean", "p99"}
    assert result["evaluation"] == {
        "context": 32, "stride": 32, "bos": False, "blocks": 3, "tokens": 93, "mode": "both",
        "exact": True,
    }  # fmt: skip
    metrics = json.loads((packed_folder / "metrics.json").read_text(encoding="utf-8"))
    assert result["average_bits"] == metrics["average_bits"]
    printed = capsys.readouterr().out
    assert f"perplexity one pass: {result['perplexity']['one_pass']:.3f}" in printed
    assert math.isfinite(result["against"]["perplexity"])
    assert [path.name for path in tmp_path.iterdir()] == ["eval.json"]


@pytest.mark.parametrize("backend", ["packed", pytest.param("native", marks=needs_kernels)])
def test_every_backend_is_set_against_the_float_model(
    packed_folder, model_folder, text_file, tmp_path, backend
):
    results = []
    for name in ("fake-quant", backend):
        output = tmp_path / f"{name}.json"
        arguments = ["eval", packed_folder, "--data", text_file, "--against", model_folder]
        arguments += ["--backend", name, "--output", output, "--blocks", 3, "--float32"]
        assert run([str(a) for a in [*arguments, "--threads", 1]]) == 0
        results.append(json.loads(output.read_text(encoding="utf-8")))
    expected, own = results
    assert own["backend"] == backend
    for part in ("one_pass", "decode"):
        assert own["perplexity"][part] == pytest.approx(expected["perplexity"][part], rel=0.01)
    assert own["kl"]["mean"] == pytest.approx(expected["kl"]["mean"], rel=0.3)
    assert own["average_bits"] == expected["average_bits"]
    assert own["same_top_float"] == pytest.approx(expected["same_top_float"], abs=0.1)
    for layer, twin in zip(own["layers"], expected["layers"], strict=True):
        assert layer["name"] == twin["name"]
        assert layer["error"] == pytest.approx(twin["error"], rel=0.1)


def test_the_engine_has_no_float64(packed_folder, capsys):
    assert run(["eval", str(packed_folder), "--backend", "native", "--exact"]) == 2
    assert "exact: the engine multiplies in float32" in capsys.readouterr().err


def test_all_blocks_are_those_of_metrics_json(packed_folder, tmp_path):
    output = tmp_path / "eval.json"
    arguments = ["eval", packed_folder, "--mode", "one-pass", "--float32"]
    assert run([str(a) for a in [*arguments, "--output", output]]) == 0
    metrics = json.loads((packed_folder / "metrics.json").read_text(encoding="utf-8"))
    found = json.loads(output.read_text(encoding="utf-8"))["perplexity"]["one_pass"]
    assert found == pytest.approx(metrics["qat"]["perplexity"], rel=1e-6)


def test_tokens_on_which_both_agree_are_counted_by_hand():
    """Of four predictions one is another when decoding, and one pass has nearly a tie there."""
    ids = torch.zeros(1, 5, dtype=torch.int64)
    whole = torch.tensor([[[2.0, 0, 0], [1.0, 0.9995, 0], [3, 1, 0], [0, 1, 3], [0, 0, 0]]])
    steps = torch.tensor([[[2.0, 0, 0], [0, 1.0, 0], [3, 1, 0], [0, 1, 3], [0, 0, 0]]])
    total = _Totals()
    total.add(ids, whole, steps, None)
    found = total.result()
    assert found["same_top"] == 0.75
    assert found["ties"] == 0.25


def test_more_tokens_than_torch_takes_quantiles_of():
    total = _Totals()
    total.count = 2**24 + 1
    total.divergences = [torch.linspace(0, 1, 2**24 + 1)]
    assert total.result()["kl"]["p99"] == pytest.approx(0.99, abs=1e-4)


@torch.no_grad()
def test_shares_by_position_and_widths_of_a_float_cache_by_hand():
    made = edgeqat.prepare(tiny.llama(), quant=QuantSection(scheme="w4a4", adaptive=0.5)).eval()
    meter = WidthMeter(made, Scheme.parse("w4a4"))
    with meter:
        for _, attention in attentions(made):
            own = attention.attention_quantizer
            own.importance = None  # what it would decide is set here
            own.widths.high = torch.arange(8)[None] < 2
        made(tiny.ids(1, 8), use_cache=False)
    assert meter.shares()["by_position"] == [1, 1, 0, 0, 0, 0, 0, 0]
    assert meter.average_bits()["kv"] == 16
