"""The main job on a tiny model: every row of the table, the packed folder it comes from."""

from __future__ import annotations

import json
import os
import shutil

import pytest
import tiny
import torch
from transformers import OPTConfig

import edgeqat
from edgeqat.data.text import load_blocks
from edgeqat.errors import DataError, FormatError, ModelError, RecipeError
from edgeqat.evaluate.average_bits import average_bits
from edgeqat.evaluate.perplexity import perplexity
from edgeqat.hf import float_model
from edgeqat.nn.lowrank import adapters
from edgeqat.pipeline import baseline
from edgeqat.pipeline.evaluate import evaluate
from edgeqat.pipeline.plan import plan
from edgeqat.pipeline.preparation import prepared
from edgeqat.pipeline.quantize import quantize
from edgeqat.pipeline.text_task import load_text
from edgeqat.recipe import files as recipes
from edgeqat.recipe.quant import QuantSection
from edgeqat.train.optim import make_optimizer


def held_out(chosen):
    return load_blocks(chosen.data, tiny.tokenizer())[1]


def names(folder):
    return sorted(path.name for path in folder.iterdir())


def test_every_row_is_what_it_says(recipe, tmp_path):
    chosen = recipe(train={"compare_float": True, "steps": 3})
    metrics = quantize(chosen, tmp_path / "out")
    blocks = held_out(chosen)
    assert metrics["float"]["perplexity"] == pytest.approx(perplexity(tiny.llama(), blocks))
    plain = edgeqat.prepare(tiny.llama(), quant=chosen.quant.ptq_only())
    assert metrics["ptq"]["perplexity"] == pytest.approx(perplexity(plain, blocks))
    start = prepared(load_text(chosen), chosen, chosen.quant)
    assert metrics["qat_start"]["perplexity"] == pytest.approx(perplexity(start, blocks))
    assert metrics["qat_start"] != metrics["ptq"]
    packed = edgeqat.load(tmp_path / "out")
    assert metrics["qat"]["perplexity"] == pytest.approx(perplexity(packed, blocks), rel=1e-9)
    assert metrics["float_same_steps"]["perplexity"] < metrics["float"]["perplexity"]
    assert metrics["average_bits"] == {"activations": 8.0, "kv": 4.5}
    assert metrics["evaluation"]["blocks"] == len(blocks)
    on_disk = json.loads((tmp_path / "out" / "metrics.json").read_text(encoding="utf-8"))
    assert on_disk == metrics


def test_training_recovers_what_quantization_lost(recipe, tmp_path):
    train = {"steps": 40, "learning_rate": 2e-3, "scale_learning_rate": 1e-4}
    chosen = recipe(quant={"scheme": "w2a8kv4"}, train=train, distill={"weight": 0})
    metrics = quantize(chosen, tmp_path / "out")
    assert metrics["qat"]["perplexity"] < 0.5 * metrics["ptq"]["perplexity"]


def test_a_baseline_of_other_scales_is_measured_against_the_best_ones(recipe, tmp_path):
    rounded = {"scale": "minmax"}
    chosen = recipe(quant={"scheme": "w2", "weight": rounded}, train={"steps": 0})
    metrics = quantize(chosen, tmp_path / "out")
    best = quantize(recipe(quant={"scheme": "w2"}, train={"steps": 0}), tmp_path / "best")
    assert metrics["ptq"] == best["ptq"] != metrics["qat_start"]


def test_without_steps_the_packed_folder_is_where_qat_starts(recipe, tmp_path):
    metrics = quantize(recipe(train={"steps": 0, "compare_float": True}), tmp_path / "out")
    assert metrics["qat"] == metrics["qat_start"]
    assert metrics["float_same_steps"] is None


@pytest.mark.parametrize(
    "quant",
    [
        {"scheme": "w3a4kv2"},
        {"scheme": "w2"},
        {"scheme": "kv2"},
        {"scheme": "w4a8kv4", "activation": {"mode": "static"}},
        {"scheme": "w4a8", "weight": {"granularity": "per_tensor"}, "skip": ["*.v_proj"]},
    ],
    ids=str,
)
def test_any_scheme_is_trained_packed_and_loaded(recipe, tmp_path, quant):
    metrics = quantize(recipe(quant=quant), tmp_path / "out")
    assert metrics["scheme"] == QuantSection.model_validate(quant).scheme
    assert metrics["qat"]["perplexity"] > 1
    edgeqat.load(tmp_path / "out")


def test_the_resolved_recipe_repeats_the_run_byte_for_byte(recipe, tmp_path):
    quantize(recipe(), tmp_path / "one")
    again = recipes.load(tmp_path / "one" / "recipe.resolved.yaml")
    quantize(again, tmp_path / "two")
    weights = [(tmp_path / run / "model.safetensors").read_bytes() for run in ("one", "two")]
    assert weights[0] == weights[1]


def test_another_seed_gives_other_weights(recipe, tmp_path):
    quantize(recipe(), tmp_path / "one")
    quantize(recipe().model_copy(update={"seed": 1}), tmp_path / "two")
    weights = [(tmp_path / run / "model.safetensors").read_bytes() for run in ("one", "two")]
    assert weights[0] != weights[1]


def test_text_named_by_the_environment_is_recorded(recipe, tmp_path, text_file, monkeypatch):
    monkeypatch.setenv("EDGEQAT_DATA", str(text_file))
    metrics = quantize(recipe(data={"root": None}), tmp_path / "out")
    assert metrics["data"] == str(text_file)
    monkeypatch.delenv("EDGEQAT_DATA")
    again = recipes.load(tmp_path / "out" / "recipe.resolved.yaml")
    assert again.data.root == str(text_file)


def test_text_that_is_named_in_full_is_not_sought_in_the_environment_s_folder(
    recipe, tmp_path, text_file, monkeypatch
):
    monkeypatch.setenv("EDGEQAT_DATA", str(tmp_path))
    named = {"root": None, "train": str(text_file)}
    assert quantize(recipe(data=named), tmp_path / "out")["data"] == str(text_file)
    with pytest.raises(DataError, match=r"is elsewhere; set data\.root \(--data\)"):
        quantize(recipe(data={**named, "root": str(tmp_path)}), tmp_path / "two")


def test_an_unknown_architecture_is_refused_before_its_weights_are_read(
    recipe, tmp_path, monkeypatch
):
    OPTConfig().save_pretrained(tmp_path / "opt")
    (tmp_path / "opt" / "model.safetensors").touch()
    with pytest.raises(ModelError, match="'opt' is not supported"):
        quantize(recipe(model={"name": str(tmp_path / "opt")}), tmp_path / "out")


def test_the_float_row_is_trained_once_per_data_and_seed(recipe, tmp_path, monkeypatch):
    monkeypatch.setenv("EDGEQAT_CACHE", str(tmp_path / "cache"))
    chosen = recipe(train={"compare_float": True})
    stages, rows = [], []
    for name in ("one", "two"):
        records = []
        rows.append(quantize(chosen, tmp_path / name, listener=records.append)["float_same_steps"])
        stages.append({record["stage"] for record in records})
    assert stages == [{"float", "qat"}, {"qat"}]
    assert rows[0] == rows[1]
    other = recipe(train={"compare_float": True}).model_copy(update={"seed": 1})
    records = []
    quantize(other, tmp_path / "three", listener=records.append)
    assert {record["stage"] for record in records} == {"float", "qat"}


def test_the_float_row_depends_on_what_trains_it(recipe, tmp_path, monkeypatch):
    monkeypatch.setenv("EDGEQAT_CACHE", str(tmp_path / "cache"))
    for number, rate in enumerate((1e-4, 1e-3)):
        chosen = recipe(train={"compare_float": True, "learning_rate": rate})
        quantize(chosen, tmp_path / str(number))
    found = [
        json.loads((tmp_path / run / "metrics.json").read_text(encoding="utf-8"))
        for run in ("0", "1")
    ]
    assert found[0]["float_same_steps"] != found[1]["float_same_steps"]


def test_a_context_beyond_the_model_is_refused(recipe, tmp_path):
    with pytest.raises(DataError, match=r"data\.context: 256 exceeds the model's 128"):
        quantize(recipe(data={"context": 256}), tmp_path / "out")


def test_a_tokenizer_beyond_the_embedding_is_refused(recipe, tmp_path):
    tiny.llama(vocab_size=100).save_pretrained(tmp_path / "model")
    tiny.tokenizer().save_pretrained(tmp_path / "model")
    with pytest.raises(ModelError, match="the embedding only 100"):
        quantize(recipe(model={"name": str(tmp_path / "model")}), tmp_path / "out")


def test_streaming_trains_like_memory_would(recipe, tmp_path, text_file):
    data = {"train": str(text_file), "valid": str(text_file), "streaming": True, "root": None}
    metrics = quantize(recipe(data=data), tmp_path / "out")
    assert metrics["train"]["steps"] == 2
    assert metrics["float_same_steps"] is None


def test_a_stream_is_calibrated_on_what_it_trains_on(recipe, tmp_path, text_file):
    valid = tmp_path / "valid.txt"
    valid.write_text(tiny.text(seed=1), encoding="utf-8")
    data = {"train": str(text_file), "valid": str(valid), "streaming": True, "root": None}
    chosen = recipe(data=data, quant={"activation": {"calibration_batches": 3}})
    (*found,) = load_text(chosen).calibration(chosen)
    whole = recipe(data={**data, "streaming": False})
    assert torch.equal(torch.cat(found), load_text(whole).train.ids[:6])


def test_average_bits_count_layers_left_in_float(recipe, tmp_path):
    chosen = recipe(quant={"scheme": "w4a4kv4", "skip": ["*.down_proj"]})
    metrics = quantize(chosen, tmp_path / "out")
    assert metrics["average_bits"]["activations"] == pytest.approx(4 + 12 / 7, abs=1e-4)
    found = evaluate(tmp_path / "out", mode="one-pass")
    assert found["average_bits"] == metrics["average_bits"]


def test_average_bits_count_the_sinks(recipe):
    assert average_bits(recipe(quant={"scheme": "w4a4kv2"})) == {
        "activations": 4.0,
        "kv": 2 + 6 * 4 / 32,
    }
    assert average_bits(recipe(quant={"scheme": "w4"})) == {"activations": 16.0, "kv": 16.0}
    assert average_bits(recipe(quant={"scheme": "kv8"}))["kv"] == 8.0
    none = recipe(quant={"scheme": "kv2", "kv": {"sink_tokens": 0}})
    assert average_bits(none)["kv"] == 2.0


def test_an_adaptive_run_measures_its_bits(recipe, tmp_path, caplog):
    chosen = recipe(quant={"scheme": "w4a4kv4", "adaptive": {"share": 0.5}})
    with caplog.at_level("INFO", "edgeqat"):
        metrics = quantize(chosen, tmp_path / "out")
    assert "activations at 8 or 4 bit, keys and values at 8 or 4 bit" in caplog.text
    bits, adaptive = metrics["average_bits"], metrics["adaptive"]
    assert adaptive["by_layer"][0] == 1
    assert 0 < adaptive["by_layer"][1] < 1
    assert adaptive["measured"] == pytest.approx(sum(adaptive["by_layer"]) / 2, abs=1e-3)
    assert bits["activations"] == pytest.approx(4 + 4 * adaptive["measured"], abs=1e-3)
    assert bits["kv"] > bits["activations"]  # sinks
    assert len(adaptive["by_position"]) == 8
    packed = edgeqat.load(tmp_path / "out")
    found = perplexity(packed, held_out(chosen))
    assert metrics["qat"]["perplexity"] == pytest.approx(found, rel=1e-9)


def test_the_run_says_what_adaptive_widths_leave_alone(recipe, tmp_path, caplog):
    with caplog.at_level("INFO", "edgeqat"):
        quantize(recipe(quant={"adaptive": {"share": 0.5}}, train={"steps": 0}), tmp_path / "out")
    assert "keys and values at 8 or 4 bit, activations stay as they are" in caplog.text


def test_a_guided_run_records_its_terms(recipe, tmp_path):
    weights = {"entropy": {"weight": 0.5}, "distribution": {"weight": 1.0}}
    chosen = recipe(quant={"scheme": "w4a4kv4"}, guide=weights, distill={"weight": 0.0})
    quantize(chosen, tmp_path / "out")
    lines = (tmp_path / "out" / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    assert set(json.loads(lines[0])["terms"]) == {"loss", "ce", "entropy", "distribution"}


def test_the_plan_predicts_the_file_it_would_write(recipe, tmp_path):
    chosen = recipe()
    found = plan(chosen, tmp_path / "out", measured=True)
    assert plan(chosen, tmp_path / "out").total_bytes == found.total_bytes
    assert names(tmp_path) == []
    quantize(chosen, tmp_path / "out")
    assert found.total_bytes == (tmp_path / "out" / "model.safetensors").stat().st_size
    assert len(found.rows) == 2 * 7 + 2
    sizes = {row[0]: int(row[5]) for row in found.rows}
    assert sizes["model.layers.0.mlp.up_proj"] == 96 * 64 // 2 + 96 * 2
    assert sizes["lm_head"] == 0
    assert found.seconds > 0


def test_the_plan_of_low_rank_training_trains_adapters(recipe, tmp_path, monkeypatch):
    trained = []
    monkeypatch.setattr(
        "edgeqat.pipeline.speed.make_optimizer",
        lambda model, train: trained.append(list(adapters(model))) or make_optimizer(model, train),
    )
    plan(recipe(train={"method": "lowrank"}), tmp_path / "out", measured=True)
    assert trained[0]


def test_adapters_start_alike_whatever_came_before(recipe, tmp_path, monkeypatch):
    monkeypatch.setenv("EDGEQAT_CACHE", str(tmp_path / "cache"))
    chosen = recipe(train={"method": "lowrank", "compare_float": True})  # trained, then found
    for name in ("one", "two"):
        quantize(chosen, tmp_path / name)
    weights = [(tmp_path / run / "model.safetensors").read_bytes() for run in ("one", "two")]
    assert weights[0] == weights[1]


def test_the_plan_leaves_the_cache_and_temporary_folders_alone(recipe, tmp_path, monkeypatch):
    monkeypatch.setenv("EDGEQAT_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    plan(recipe(train={"compare_float": True}), tmp_path / "out")
    assert os.listdir(tmp_path) == []


def test_the_card_holds_the_table(recipe, tmp_path):
    metrics = quantize(recipe(), tmp_path / "out")
    card = (tmp_path / "out" / "README.md").read_text(encoding="utf-8")
    assert f"{metrics['qat']['perplexity']:.3f}" in card
    assert f"{metrics['ptq']['perplexity']:.3f}" in card
    assert "w4a8kv4" in card
    assert str(tmp_path) not in card


def test_the_packed_model_is_the_trained_one(recipe, tmp_path):
    quantize(recipe(train={"steps": 5, "learning_rate": 1e-2}), tmp_path / "out")
    packed = edgeqat.load(tmp_path / "out")
    started = edgeqat.prepare(tiny.llama(), quant=recipe().quant)
    name = "model.layers.0.mlp.up_proj"
    layer = started.get_submodule(name)
    before = layer.weight_quantizer.codes(layer.weight)[0]
    assert not torch.equal(packed.get_submodule(name).codes(), before)


def test_low_rank_training_writes_the_merged_model_and_its_adapters(recipe, tmp_path):
    train = {"steps": 20, "method": "lowrank", "lowrank": {"rank": 4}, "learning_rate": 1e-3}
    quant = {"scheme": "w2a8kv4", "weight": {"init": "mse"}}
    metrics = quantize(recipe(quant=quant, train=train), tmp_path / "out")
    assert metrics["qat"]["perplexity"] < metrics["qat_start"]["perplexity"]
    assert (tmp_path / "out" / "adapter" / "adapter_config.json").is_file()
    edgeqat.load(tmp_path / "out")  # checks the adapter's hashes as well
    (tmp_path / "out" / "adapter" / "adapter_config.json").write_text("{}")
    with pytest.raises(FormatError, match=r"adapter/adapter_config\.json"):
        edgeqat.load(tmp_path / "out")


def test_a_term_without_teacher_guides_a_run_without_distillation(recipe, tmp_path):
    guide = {"entropy": {"weight": 0.5, "form": "paper"}}
    chosen = recipe(guide=guide, distill={"weight": 0.0}, train={"compare_float": True})
    quantize(chosen, tmp_path / "out")
    lines = (tmp_path / "out" / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    assert set(json.loads(lines[0])["terms"]) == {"loss", "ce", "entropy"}


def test_a_teacher_that_nothing_uses_is_refused(recipe, tmp_path, model_folder):
    chosen = recipe(distill={"weight": 0.0, "teacher": str(model_folder)})
    with pytest.raises(RecipeError, match=r"distill.teacher: .* teaches nothing"):
        quantize(chosen, tmp_path / "out")


def test_the_float_row_is_that_of_as_many_processes(recipe, monkeypatch):
    chosen = recipe()
    task = load_text(chosen)
    one = baseline._cache_file(task, chosen)
    monkeypatch.setattr("edgeqat.train.processes.count", lambda: 4)
    assert baseline._cache_file(task, chosen) != one


def test_what_says_how_weights_are_used_is_in_their_fingerprint(model_folder, tmp_path):
    copied = shutil.copytree(model_folder, tmp_path / "copy")
    before = float_model.fingerprint(str(copied))
    assert before == float_model.fingerprint(str(model_folder))
    values = json.loads((copied / "config.json").read_text(encoding="utf-8"))
    (copied / "config.json").write_text(json.dumps({**values, "rms_norm_eps": 0.5}))
    assert float_model.fingerprint(str(copied)) != before
    weights = str(copied / "model.safetensors")
    assert float_model.fingerprint("one", weights) != float_model.fingerprint("other", weights)


def test_samples_that_do_not_see_each_other_are_rounded_and_trained_so(recipe, tmp_path):
    rows = [json.dumps({"text": tiny.text(3 + number % 5, number)}) for number in range(60)]
    (tmp_path / "rows.jsonl").write_text("\n".join(rows), encoding="utf-8")
    data = {"root": None, "train": str(tmp_path / "rows.jsonl"), "packing": "whole"}
    chosen = recipe(data={**data, "context": 64}, train={"blocks": {"passes": 1}})
    task = load_text(chosen)
    batch = next(iter(task.calibration(chosen)))
    assert (batch["position_ids"][:, 1:] == 0).any()
    task.keep_apart()
    assert task.divergence(task.model) == pytest.approx(0, abs=1e-6)
    metrics = quantize(chosen, tmp_path / "out")
    assert metrics["train"]["steps"] == 2 and metrics["qat"]["perplexity"] > 1
