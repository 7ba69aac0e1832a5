"""`edgeqat train`, `coreset`, `quantize`, `eval` and `inspect` on a tiny image classifier."""

import json
from pathlib import Path

import pytest
import torch
from command_lines import with_data
from pictures import parquet
from safetensors.torch import load_file, save_file

import edgeqat
from edgeqat.cli import run
from edgeqat.coreset import samples
from edgeqat.hf import image_model
from edgeqat.nn.conv import PackedConv2d
from edgeqat.pipeline.load import load_task
from edgeqat.pipeline.preparation import prepared
from edgeqat.pipeline.sampling import recalibrate_batch_norms
from edgeqat.quant.lsq import StaticQuantizer
from edgeqat.recipe import files as recipes
from edgeqat.vision.zoo import build

MODEL = "mobilenetv2-x0.1-cifar10"
SMALL = ["--set", "train.batch_size=6", "--set", "train.learning_rate=0.01"]


@pytest.fixture(scope="module")
def arguments(images, floating):
    weights = ["--model", MODEL, "--weights", str(floating / "model.safetensors")]
    return [*weights, "--data", images, "--w2a32", "--set", "data.images.size=16", *SMALL]


@pytest.fixture(scope="module")
def packed(arguments, tmp_path_factory):
    folder = tmp_path_factory.mktemp("packed") / "net"
    chosen = ["--coreset", "0.5", "--set", "coreset.every=1", "--set", "correct.weight=1"]
    more = ["--set", "train.epochs=2", "--set", "train.log_steps=1", "--output", str(folder)]
    assert run(["quantize", *arguments, *chosen, *more]) == 0
    return folder


def test_a_float_model_is_a_weights_file_and_a_folder(floating, images, tmp_path, capsys):
    metrics = json.loads((floating / "metrics.json").read_text())
    assert metrics["train"]["steps"] == 4 and set(metrics["float"]) == {"top1", "top5"}
    given = ["quantize", "--model", str(floating), "--w4a8", "--steps", "1", *SMALL]
    none = ["--set", "train.compare_float=false", "--output", str(tmp_path / "out")]
    assert run([*given, "--data", str(floating)]) == 2
    assert "has no train images" in capsys.readouterr().err
    assert run([*given, *none, "--data", images]) == 0
    edgeqat.load(tmp_path / "out")


def test_what_only_language_models_have_is_refused_of_a_float_one(images, tmp_path, capsys):
    given = ["--data", images, "--output", str(tmp_path / "out")]
    more = ["--set", "train.gradient_checkpointing=true"]
    assert run(["train", "--recipe", "mobilenetv2-cifar100-float", *given, *more]) == 2
    assert "train.gradient_checkpointing: True is for language models" in capsys.readouterr().err


def test_metrics_are_those_of_the_contract(packed):
    metrics = json.loads((packed / "metrics.json").read_text())
    assert metrics["scheme"] == "w2a16kv16" and metrics["model"] == MODEL
    for row in ("float", "float_same_steps", "ptq", "qat"):
        assert 0 <= metrics[row]["top1"] <= metrics[row]["top5"] <= 100
    assert metrics["norms_estimated"]
    train = metrics["train"]
    assert train["steps"] == 4 and train["samples_per_second"] > 0
    assert train["selection_seconds"] > 0
    coreset = metrics["coreset"]
    assert (coreset["size"], coreset["samples"]) == (12, 24)
    assert [turn["epoch"] for turn in coreset["selections"]] == [0, 1]
    assert metrics["bytes"]["total"] < metrics["bytes"]["fp16"]
    lines = (packed / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    records = [json.loads(line) for line in lines]
    assert set(records[-1]["terms"]) == {"loss", "ce", "kl", "correction"}


def test_the_folder_loads_and_is_what_was_measured(packed, images, capsys):
    model = edgeqat.load(packed)
    assert not model.training
    assert isinstance(model.features[2].conv[1][0], PackedConv2d)
    metrics = json.loads((packed / "metrics.json").read_text())
    assert run(["eval", str(packed), "--data", images, "--output", str(packed.parent / "e")]) == 0
    found = json.loads((packed.parent / "e").read_text())
    assert found["top1"] == pytest.approx(metrics["qat"]["top1"])
    assert run(["inspect", str(packed), "--verify"]) == 0
    text = capsys.readouterr().out
    assert "qat: top1" in text and "MobileNetV2 at w2a16kv16" in text


def test_the_card_and_the_config_say_what_it_is(packed):
    text = (packed / "README.md").read_text()
    for words in (
        "| | top1 |",
        "image-classification",
        "12 of 24 images",
        "9 held-out images",
        "2507.17768",
    ):
        assert words in text
    assert "AutoModelForCausalLM" not in text and "{%" not in text
    config = json.loads((packed / "config.json").read_text())
    assert config["image"]["network"] == MODEL and config["image"]["labels"][:2] == ["cat", "dog"]
    assert recipes.load(packed / "recipe.resolved.yaml").coreset.share == 0.5


def test_a_packed_folder_is_compared_with_its_float_model(packed, floating, images, capsys):
    for against in (floating, floating / "model.safetensors"):
        assert run(["eval", str(packed), "--data", images, "--against", str(against)]) == 0
        assert "the same class in" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("chosen", "count"),
    [
        (["--coreset", "0.5"], 4),  # where QAT starts, two selections, after training
        (["--coreset", "0.5", "--set", "coreset.selector=random"], 2),
        (["--coreset", "0.5", "--set", "coreset.norm_images=0"], 0),
        ([], 0),
    ],
)
def test_batch_norms_of_a_coreset_are_estimated_anew(
    arguments, tmp_path, monkeypatch, chosen, count
):
    calls, estimated = [], samples.estimate
    monkeypatch.setattr(samples, "estimate", lambda *a: calls.append(1) or estimated(*a))
    again = ["--set", "coreset.every=1"] if chosen else []
    steps = ["--set", "train.epochs=2", *again, "--set"]
    place = ["train.compare_float=false", "--output", str(tmp_path / "net")]
    assert run(["quantize", *arguments, *chosen, *steps, *place]) == 0
    assert len(calls) == count


def test_the_report_draws_the_scores_of_the_coreset(packed):
    html = (packed / "report.html").read_text(encoding="utf-8")
    assert "12 of 24 samples" in html
    part = html[html.index("<h2>Coreset") :].partition("</table>")[0]
    assert part.count("<svg") == 2 and part.count("<tr>") == 3
    assert "epoch 0" in part and "epoch 1" in part


def test_the_report_of_images_is_drawn_with_speed(packed, tmp_path):
    shared = {"model": "m", "cpu": "c", "threads": 1, "test": "b1"}
    speed = {"images_per_second": {"mean": 5.0, "sd": 1.0}}
    rows = [{"engine": name, **shared, **speed} for name in ("onnxruntime", "torch")]
    (tmp_path / "rows.json").write_text(json.dumps(rows), encoding="utf-8")
    given = ["--bench", tmp_path / "rows.json", "--output", tmp_path / "page.html"]
    assert run([str(a) for a in ["report", packed, *given, "--png", tmp_path / "png"]]) == 0
    assert {path.stem for path in (tmp_path / "png").iterdir()} == {
        "bytes", "coreset", "losses", "speed",
    }  # fmt: skip


@pytest.mark.parametrize("backend", ["float", "fake-quant", "native"])
def test_tasks_are_for_language_models(packed, backend, capsys):
    assert run(["eval", str(packed), "--tasks", "piqa", "--backend", backend]) == 2
    assert "is an image classifier; leave out --tasks" in capsys.readouterr().err


def test_a_dry_run_writes_nothing(arguments, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert run(["quantize", *arguments, "--coreset", "0.5", "--dry-run", "--measure"]) == 0
    text = capsys.readouterr().out
    assert "coreset: 12 of 24 by quarc, anew every 50 passes" in text and "equal" in text
    assert "attention" not in text and not list(tmp_path.iterdir())


def test_a_coreset_file_is_written_and_fed_back(arguments, tmp_path, capsys):
    file = tmp_path / "run.yaml"
    file.write_text(f"model: {{name: {MODEL}}}\nquant: {{scheme: w2a32}}\n")
    given = [a for a in arguments[2:] if a != "--w2a32"]
    chosen = ["coreset", "--recipe", str(file), *given, "--coreset", "0.25"]
    assert run([*chosen, "--output", str(tmp_path / "idx.json")]) == 0
    text = capsys.readouterr().out
    assert "6 of 24 samples by quarc" in text and "classes:" in text
    values = json.loads((tmp_path / "idx.json").read_text())
    assert len(values["index"]) == 6
    again = ["--output", str(tmp_path / "two.json"), "--against", str(tmp_path / "idx.json")]
    assert run([*chosen, *again]) == 0
    assert "overlap with the other selection: 100.0%" in capsys.readouterr().out
    out = ["--output", str(tmp_path / "out"), "--set", "train.compare_float=false"]
    steps = ["--steps", "2", "--coreset", str(tmp_path / "idx.json")]
    assert run(["quantize", *arguments, *steps, *out]) == 0
    metrics = json.loads((tmp_path / "out" / "metrics.json").read_text())
    assert metrics["coreset"]["size"] == 6 and metrics["train"]["steps"] == 2
    assert metrics["float_same_steps"] is None


FAULTS = {
    "a share above 1": (["--coreset", "1.5"], ["coreset.share", "1.5", "less than or equal"]),
    "a share of nothing": (["--coreset", "0"], ["coreset.share", "0", "greater than"]),
    "no share and no file": (["--coreset", "some.json"], ["'some.json'", "(0, 1]", "0.01"]),
    "fewer samples than classes": (["--coreset", "0.04"], ["1 samples", "3 classes"]),
    "a selector": (["--set", "coreset.selector=best"], ["coreset.selector", "best"]),
    "a block rule": (
        ["--set", "correct.weight=1", "--set", "correct.blocks=stage?"],
        ["correct.blocks", "'stage?'", "matches no block"],
    ),
    "a form": (["--set", "correct.form=l1"], ["correct.form", "l1"]),
    "a KV cache": (["--kv4"], ["scheme", "kv4", "--w"]),
    "another runtime": (["--target", "gguf"], ["target", "gguf", "language models"]),
    "low-rank training": (["--set", "train.method=lowrank"], ["train.method", "lowrank"]),
    "guidance": (["--set", "guide.entropy.weight=1"], ["guide", "image models"]),
    "a label column": (["--set", "data.images.label=kind"], ["data.images.label", "kind"]),
    "another model": (["--model", "resnet81-cifar10"], ["resnet81-cifar10"]),
    "another width": (["--model", "mobilenetv2-x0.2-cifar10"], ["does not fit"]),
    "data of another name": (["--set", "data.train=ci"], ["data.train", "'ci'", "cifar10"]),
    "no data": (["--set", "data.train=nothing"], ["data.train", "no 'nothing' in"]),
    "a mix": (["--data", "nothing"], ["data.mix", "images are not mixed"]),
}  # fmt: skip


@pytest.mark.parametrize("case", FAULTS)
def test_wrong_use_is_refused_in_one_line(arguments, tmp_path, monkeypatch, capsys, case):
    monkeypatch.chdir(tmp_path)
    given, words = FAULTS[case]
    assert run(["quantize", *arguments, "--steps", "1", *given]) == 2
    output, error = capsys.readouterr()
    assert error.startswith("error: ") and len(error.splitlines()) == 1 and output == ""
    assert [word for word in words if word not in error] == [], error
    assert not list(tmp_path.iterdir())


def test_weights_replace_those_of_a_folder(floating, images, tmp_path):
    tensors = load_file(floating / "model.safetensors")
    name = "classifier.1.bias"
    tensors[name] = torch.tensor([50.0] + [0.0] * (len(tensors[name]) - 1))
    save_file(tensors, tmp_path / "w.safetensors")
    model, _ = image_model.load(str(floating), str(tmp_path / "w.safetensors"))
    assert model.classifier[1].bias[0] == 50


def test_a_report_takes_the_speed_of_a_classifier(packed, tmp_path):
    speed = {"mean": 10.0, "sd": 1.0}
    row = {"engine": "torch", "test": "b1", "images_per_second": speed, "model": "net"}
    rows = [{**row, "cpu": "a cpu", "threads": 1}]
    (tmp_path / "rows.json").write_text(json.dumps(rows))
    page = tmp_path / "page.html"
    arguments = ["--bench", str(tmp_path / "rows.json"), "--output", str(page)]
    assert run(["report", str(packed), *arguments]) == 0
    html = page.read_text(encoding="utf-8")
    assert "images/s" in html and "KV cache" not in html


@pytest.mark.parametrize("given", [["--mode", "decode"], ["--exact"], ["--blocks", "2"]])
def test_options_of_text_are_refused(packed, capsys, given):
    assert run(["eval", str(packed), *given]) == 2
    assert "they are for text; leave them out" in capsys.readouterr().err


def test_weights_are_needed(images, capsys):
    assert run(["quantize", "--model", MODEL, "--data", images, "--w2a32"]) == 2
    assert "--weights" in capsys.readouterr().err


def test_labels_outside_the_model_are_refused(arguments, tmp_path, capsys):
    from datasets import Value

    labels, size = [0, 1, 12, 0, 2], {"width": 16, "height": 16}
    for split in ("train", "test"):
        parquet(tmp_path, split, labels=labels, kind=Value("int64"), **size)
    assert run(["quantize", *with_data(arguments, str(tmp_path))]) == 2
    assert "label 12" in capsys.readouterr().err


def test_unlabelled_data_says_which_scores_need_none(arguments, tmp_path, capsys):
    size = {"width": 16, "height": 16}
    parquet(tmp_path, count=12, labels=False, **size), parquet(tmp_path, "test", **size)
    given = ["quantize", *with_data(arguments, str(tmp_path)), "--coreset", "0.5", "--steps", "2"]
    assert run(given) == 2
    assert "train.compare_float" in capsys.readouterr().err
    given += ["--set", "train.compare_float=false"]
    assert run([*given, "--set", "coreset.selector=evs"]) == 2
    assert "choose res, ds or random" in capsys.readouterr().err
    res = ["--set", "coreset.selector=res", "--output", str(tmp_path / "out")]
    assert run([*given, *res]) == 0


def test_a_coreset_file_of_other_data_is_refused(arguments, images, tmp_path, capsys):
    file = tmp_path / "idx.json"
    given = ["quantize", *arguments, "--steps", "1", "--coreset", str(file)]
    file.write_text(json.dumps({"samples": 24, "data": "0", "index": [1, 2]}))
    assert run(given) == 2
    assert "selected from other data" in capsys.readouterr().err
    file.write_text("[1, 2]")
    assert run(given) == 2
    assert "was not written by `edgeqat coreset`" in capsys.readouterr().err


@pytest.mark.parametrize("damage", ["weights", "config"])
def test_a_damaged_folder_is_refused(packed, tmp_path, capsys, damage):
    import shutil

    folder = Path(shutil.copytree(packed, tmp_path / "copy"))
    name = "model.safetensors" if damage == "weights" else "config.json"
    raw = bytearray((folder / name).read_bytes())
    raw[-40] ^= 1
    (folder / name).write_bytes(raw)
    assert run(["eval", str(folder), "--data", "."]) in (1, 2)
    assert name in capsys.readouterr().err


def test_pixels_are_normalised_as_the_folder_says(packed):
    config = json.loads((packed / "config.json").read_text())
    assert config["image"]["mean"][0] == pytest.approx(0.5071)
    assert torch.isfinite(edgeqat.load(packed)(torch.randn(2, 3, 16, 16))).all()


def test_static_scales_are_those_of_the_norms_that_training_starts_with(images, floating):
    values = {
        "model.name": MODEL, "model.weights": str(floating / "model.safetensors"),
        "data.root": images, "data.images.size": 16, "quant.scheme": "w2a4",
        "train.batch_size": 6, "coreset.share": 0.5,
    }  # fmt: skip
    recipe = recipes.load(None, values)
    found = []
    for stale in (1.0, 30.0):
        task = load_task(recipe)
        for module in task.model.modules():
            if isinstance(module, torch.nn.BatchNorm2d):
                module.running_var.mul_(stale)
        student = prepared(task, recipe, recipe.quant)
        assert recalibrate_batch_norms(task, recipe, student)
        norms = [value for name, value in student.named_buffers() if name.endswith("running_var")]
        found.append(torch.cat([*_scales(student), *norms]))
    assert torch.equal(*found) and len(found[0]) > 10
    last = next(m for m in reversed(list(student.modules())) if isinstance(m, torch.nn.BatchNorm2d))
    before = last.running_var.clone()
    task.samples(recipe).recalibrate_batch_norms(student)
    assert torch.equal(last.running_var, before)  # the scales are those the norms were found with


def _scales(model):
    return [m.scale.detach() for m in model.modules() if isinstance(m, StaticQuantizer)]


def test_a_student_drops_no_paths(images, tmp_path):
    model = build("efficientnet-b0-cifar10", 3)
    save_file(model.state_dict(), tmp_path / "net.safetensors")
    values = {
        "model.name": "efficientnet-b0-cifar10", "quant.scheme": "w2a32", "data.root": images,
        "model.weights": str(tmp_path / "net.safetensors"), "data.images.size": 16,
    }  # fmt: skip
    dropping = [m for m in load_task(recipes.load(None, values)).model.modules()
                if getattr(m, "drop_prob", 0)]  # fmt: skip
    assert not dropping and any(getattr(m, "drop_prob", 0) for m in model.modules())
