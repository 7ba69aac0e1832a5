"""A result is used from another folder than the one its run started in."""

from __future__ import annotations

import json
import shutil

import pytest
import tiny
from pictures import parquet
from safetensors.torch import save_file

from edgeqat.cli import run
from edgeqat.pipeline.load import with_data_root
from edgeqat.recipe import files as recipes
from edgeqat.vision.zoo import build

QUICK = ["--set", "data.context=32", "--set", "train.batch_size=2", "--steps", "1"]
QUICK += ["--set", "train.compare_float=false", "--set", "data.valid_blocks=4"]


@pytest.fixture
def here(tmp_path, monkeypatch, model_folder):
    """A folder to start in, with a model, its weights, a teacher and texts; the next to be in."""
    (tmp_path / "here" / "texts").mkdir(parents=True)
    (tmp_path / "elsewhere").mkdir()
    for name in ("net", "teacher"):
        shutil.copytree(model_folder, tmp_path / "here" / name)
    for name, seed in (("train.txt", 0), ("valid.txt", 9)):
        text = tiny.text(1500, seed=seed)
        (tmp_path / "here" / "texts" / name).write_text(text, encoding="utf-8")
    monkeypatch.chdir(tmp_path / "here")
    return tmp_path / "here"


def resolved(folder):
    return recipes.load(folder / "recipe.resolved.yaml")


DATA = {
    "a folder": ["--data", "texts"],
    "a file": ["--data", "texts/train.txt"],
    "a file and another": ["--data", "texts/train.txt", "--set", "data.valid=texts/valid.txt"],
    "names in a folder": [
        *("--data", "texts", "--set", "data.train=train.txt", "--set", "data.valid=valid.txt"),
    ],
    "names": ["--set", "data.train=texts/train.txt", "--set", "data.valid=texts/valid.txt"],
    "a folder by name": ["--set", "data.train=texts"],
}


@pytest.mark.parametrize("case", DATA)
def test_a_run_of_relative_places_is_evaluated_from_elsewhere(here, monkeypatch, case, capsys):
    given = ["--model", "net", "--w4a8kv4", *DATA[case], *QUICK, "--steps", "0", "--output", "out"]
    assert run(["quantize", *given]) == 0
    assert json.loads((here / "out" / "metrics.json").read_text())["model"] == "net"
    assert "# net at w4a8kv4" in (here / "out" / "README.md").read_text()
    assert resolved(here / "out").model.name == str(here / "net")
    more = ["--mode", "one-pass", "--blocks", "4", "--output", "e.json"]
    assert run(["eval", "out", *more]) == 0
    monkeypatch.chdir(here.parent / "elsewhere")
    assert run(["eval", str(here / "out"), *more]) == 0, capsys.readouterr().err
    one, two = (
        json.loads((where / "e.json").read_text()) for where in (here, here.parent / "elsewhere")
    )
    assert one["perplexity"] == two["perplexity"]


def test_weights_teachers_and_coresets_are_found_from_elsewhere(here, monkeypatch, capsys):
    file = here / "run.yaml"
    file.write_text("model: {name: net, weights: net/model.safetensors}\nquant: {scheme: w4a8}\n")
    size = ["--set", "data.context=32"]
    given = ["coreset", "--recipe", "run.yaml", "--data", "texts", "--coreset", "0.5", *size]
    assert run([*given, "--output", "idx.json"]) == 0
    assert json.loads((here / "idx.json").read_text())["model"] == "net"
    more = ["--set", "distill.teacher=teacher", "--coreset", "idx.json", "--output", "out"]
    assert run(["quantize", "--recipe", "run.yaml", "--data", "texts", *QUICK, *more]) == 0
    monkeypatch.chdir(here.parent / "elsewhere")
    again = ["--recipe", str(here / "out" / "recipe.resolved.yaml"), "--output", "again"]
    assert run(["quantize", *again]) == 0, capsys.readouterr().err
    one, two = (
        json.loads((p / "metrics.json").read_text())
        for p in (here / "out", here.parent / "elsewhere" / "again")
    )
    assert one["qat"] == two["qat"]


def test_names_that_are_no_places_stay(here, monkeypatch):
    (here / "mobilenetv2-cifar100").mkdir()
    monkeypatch.setenv("EDGEQAT_DATA", "texts")
    values = {"model.name": "mobilenetv2-cifar100", "distill.teacher": "o/m"}
    found = with_data_root(recipes.load(None, values))
    assert (found.model.name, found.distill.teacher) == ("mobilenetv2-cifar100", "o/m")
    assert found.data.root == str(here / "texts")
    monkeypatch.delenv("EDGEQAT_DATA")
    demo = recipes.load(
        None, {"data.train": "demo", "model.name": "demo", "data.valid": "demo#valid"}
    )
    (here / "demo").mkdir()
    assert with_data_root(demo) == demo
    part = with_data_root(recipes.load(None, {"data.train": "texts#valid"})).data.train
    assert part == f"{here / 'texts'}#valid"


def test_a_float_model_is_trained_again_from_elsewhere(here, monkeypatch, capsys):
    file = here / "float.yaml"
    file.write_text(
        "architecture: {vocab_size: 300, hidden_size: 32, layers: 1, head_dim: 16, ffn: 48, "
        "positions: 64}\ndata: {context: 16, train: texts}\ntrain: {steps: 1, batch_size: 2}\n"
    )
    assert run(["train", "--recipe", "float.yaml", "--output", "float"]) == 0
    assert resolved(here / "float").data.train == str(here / "texts")
    monkeypatch.chdir(here.parent / "elsewhere")
    again = ["--recipe", str(here / "float" / "recipe.resolved.yaml"), "--output", "again"]
    assert run(["train", *again]) == 0, capsys.readouterr().err


@pytest.mark.parametrize("named", [["--data", "images"], ["--set", "data.train=images"]])
def test_images_and_weights_are_found_from_elsewhere(here, monkeypatch, named):
    for place in ("images", "others"):
        (here / place).mkdir()
        for split, count in (("train", 6), ("test", 3 if place == "images" else 5)):
            parquet(here / place, split, count=count, width=16, height=16)
    save_file(build("mobilenetv2-x0.1-cifar10", 3).state_dict(), here / "net.safetensors")
    model = ["--model", "mobilenetv2-x0.1-cifar10", "--weights", "net.safetensors", "--w4a8"]
    more = ["--set", "train.compare_float=false", "--steps", "0", "--set", "data.images.size=16"]
    assert run(["quantize", *model, *named, *more, "--output", "out"]) == 0
    monkeypatch.chdir(here.parent / "elsewhere")
    weights = ["--against", str(here / "net.safetensors")]
    for data, images in ([], 3), (["--data", str(here / "others")], 5):
        assert run(["eval", str(here / "out"), *data, *weights, "--output", "e.json"]) == 0
        assert (
            json.loads((here.parent / "elsewhere" / "e.json").read_text())["evaluation"]["images"]
            == images
        )


def test_the_same_command_of_relative_places_continues(here):
    from test_run import at, kill

    from edgeqat.pipeline.quantize import quantize

    values = {"model": {"name": "net"}, "data": {"root": "texts", "context": 32, "valid_blocks": 4}}
    train = {"steps": 4, "batch_size": 2, "log_steps": 2, "save_steps": 2, "compare_float": False}
    recipe = recipes.validate({**values, "train": train, "quant": {"scheme": "w4a8kv4"}})
    with pytest.raises(SystemExit):
        quantize(recipe, here / "out", listener=at("qat", 2, kill))
    steps = []
    quantize(recipe, here / "out", listener=lambda record: steps.append(record["step"]))
    assert steps[-1] == 4 and len(steps) < 3
