"""Some of the model's classes, or another order of them: every verb labels them by name."""

import json
import shutil
from pathlib import Path

import onnx
import pytest
from datasets import ClassLabel
from pictures import parquet, picture
from safetensors.torch import load_file, save_file
from transformers import ViTConfig, ViTForImageClassification

from edgeqat.cli import run
from edgeqat.errors import DataError
from edgeqat.pipeline.load import load_task
from edgeqat.recipe import files as recipes
from edgeqat.vision.zoo import build

MODEL, SIZE = "mobilenetv2-x0.1-cifar10", {"width": 16, "height": 16}
NAMES = ["cat", "dog", "owl"]
TRAIN = ["--set", "train.batch_size=6", "--set", "train.learning_rate=0.01"]
QUICK = [*TRAIN, "--set", "train.compare_float=false", "--steps", "1"]


def folders(place, names, count=4):
    """A class folder for each name, the images of class n those of parquet()'s class n."""
    for split in ("train", "test"):
        for name in names:
            (place / split / name).mkdir(parents=True)
            number = NAMES.index(name.lower())
            for turn in range(count):
                picture(number + 3 * turn, 16, 16).save(place / split / name / f"{turn}.png")
    return str(place)


@pytest.fixture(scope="module")
def owls(floating, tmp_path_factory):
    """The network, which calls every image an owl."""
    folder = Path(shutil.copytree(floating, tmp_path_factory.mktemp("owls") / "net"))
    tensors = load_file(folder / "model.safetensors")
    tensors["classifier.1.bias"][2] += 50
    save_file(tensors, folder / "model.safetensors")
    return folder


@pytest.fixture(scope="module")
def packed(owls, images, tmp_path_factory):
    folder = tmp_path_factory.mktemp("packed") / "net"
    given = ["--model", str(owls), "--data", images, "--w4a8", *QUICK]
    assert run(["quantize", *given, "--output", str(folder)]) == 0
    return folder


def configured(folder):
    return json.loads((folder / "config.json").read_text())["image"]


def test_a_float_model_has_the_classes_of_its_training_data(owls):
    assert (configured(owls)["classes"], configured(owls)["labels"]) == (3, NAMES)


@pytest.mark.parametrize("given", ["folder", "weights"])
def test_a_folder_of_some_classes_is_labelled_by_name(owls, tmp_path, given):
    model = {"model.name": str(owls)}
    if given == "weights":
        model = {"model.name": MODEL, "model.weights": str(owls / "model.safetensors")}
    values = {"data.root": folders(tmp_path, ["dog", "Owl"]), "data.images.size": 16}
    task = load_task(recipes.load(None, {**model, **values, "quant.scheme": "w4a8"}))
    for part in (task.train, task.valid):
        assert sorted(part.labels.tolist()) == [1] * 4 + [2] * 4
        assert part.names == NAMES
    assert task.kind.labels == tuple(NAMES)


def test_training_on_some_classes_leaves_the_list_of_all(owls, tmp_path):
    place = folders(tmp_path / "data", ["dog", "owl"])
    given = ["--model", str(owls), "--data", place, "--w4a8", *QUICK]
    assert run(["quantize", *given, "--output", str(tmp_path / "out")]) == 0
    assert configured(tmp_path / "out")["labels"] == NAMES
    file = tmp_path / "net.onnx"
    assert run(["export", "onnx", str(tmp_path / "out"), "--output", str(file)]) == 0
    told = {entry.key: entry.value for entry in onnx.load(file).metadata_props}
    assert told["labels"].split("\n") == NAMES


def score(folder, data, tmp_path, *more):
    given = ["eval", str(folder), "--data", str(data), "--output", str(tmp_path / "e.json")]
    assert run([*given, *more]) == 0
    return json.loads((tmp_path / "e.json").read_text())


def test_some_of_the_classes_are_evaluated_as_themselves(packed, owls, tmp_path):
    place = folders(tmp_path / "data", ["dog", "owl"])
    found = score(packed, place, tmp_path, "--against", str(owls))
    assert found["top1"] == 50 == found["against"]["top1"]  # all are owls to them


def test_another_order_of_names_is_evaluated_alike(packed, tmp_path):
    kind, labels = ClassLabel(names=["owl", "cat", "dog"]), [0] * 6 + [1] * 4 + [2] * 2
    parquet(tmp_path, "test", count=12, labels=labels, kind=kind, **SIZE)
    assert score(packed, tmp_path, tmp_path)["top1"] == 50


def test_a_coreset_is_chosen_from_some_of_the_classes(owls, tmp_path, capsys):
    file = tmp_path / "run.yaml"
    file.write_text(f"model: {{name: {owls}}}\nquant: {{scheme: w2a32}}\n")
    given = ["--data", folders(tmp_path / "data", ["dog", "owl"]), "--coreset", "0.5"]
    given += ["--set", "coreset.balanced=true"]
    chosen = ["coreset", "--recipe", str(file), *given, "--output", str(tmp_path / "i.json")]
    assert run(chosen) == 0
    values = json.loads((tmp_path / "i.json").read_text())
    assert values["summary"]["classes"][0] == 0 and values["summary"]["accuracy"] == 50
    assert "classes: 2 samples of each of the 2 classes chosen from\n" in capsys.readouterr().out


@pytest.mark.parametrize("verb", ["quantize", "eval"])
def test_names_that_the_model_lacks_are_refused(verb, owls, packed, tmp_path, capsys):
    kind = ClassLabel(names=["cat", "yak", "zebra"])
    for split in ("train", "test"):
        parquet(tmp_path, split, labels=[0, 1, 2, 0, 1], kind=kind, **SIZE)
    first = ["quantize", "--model", str(owls), "--w4a8", *QUICK]
    given = first if verb == "quantize" else ["eval", str(packed)]
    assert run([*given, "--data", str(tmp_path), "--output", str(tmp_path / "out")]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert "'yak' in" in line and "2 of 3 names" in line and "known: cat, dog, owl" in line
    assert not (tmp_path / "out").exists()


def task_of(name, place, weights=None):
    values = {"model.name": name, "model.weights": weights, "data.root": place}
    values |= {"quant.scheme": "w2a32", "data.images.size": 16}
    return load_task(recipes.load(None, {key: v for key, v in values.items() if v is not None}))


def test_bare_weights_have_the_names_of_the_data_set(tmp_path):
    save_file(build(MODEL).state_dict(), tmp_path / "net.safetensors")
    task = task_of(
        MODEL, folders(tmp_path / "data", ["dog", "cat"]), str(tmp_path / "net.safetensors")
    )
    assert sorted(set(task.valid.labels.tolist())) == [3, 5]
    assert len(task.kind.labels) == 10 and task.kind.labels[3] == "cat"


def test_bare_weights_of_other_classes_need_all_of_them(tmp_path):
    weights = str(tmp_path / "net.safetensors")
    save_file(build(MODEL, 3).state_dict(), weights)
    with pytest.raises(DataError, match="names 2 classes and the model has 3 without names"):
        task_of(MODEL, folders(tmp_path / "two", ["dog", "cat"]), weights)
    task = task_of(MODEL, folders(tmp_path / "three", NAMES), weights)
    assert task.kind.labels == tuple(NAMES) and task.train.labels.unique().tolist() == [0, 1, 2]


@pytest.mark.parametrize("named", [True, False])
def test_names_of_transformers_are_matched_too(tmp_path, named):
    names = {0: "night bird, Owl", 1: "tiger cat, cat", 2: "dog"} if named else None
    config = ViTConfig(image_size=16, patch_size=4, hidden_size=32, num_hidden_layers=1,
                       num_attention_heads=2, intermediate_size=48, num_labels=3)  # fmt: skip
    config.id2label = names or config.id2label
    ViTForImageClassification(config).save_pretrained(tmp_path / "net")
    place = folders(tmp_path / "data", ["dog", "owl"])
    if not named:
        with pytest.raises(DataError, match="2 classes and the model has 3 without names"):
            task_of(str(tmp_path / "net"), place)
        return
    task = task_of(str(tmp_path / "net"), place)
    assert sorted(set(task.train.labels.tolist())) == [0, 2]
    assert task.kind.labels == ("night bird, Owl", "tiger cat, cat", "dog")


def test_a_float_model_with_another_order_is_refused(packed, owls, images, tmp_path, capsys):
    (tmp_path / "net").mkdir()
    config = json.loads((owls / "config.json").read_text())
    config["image"]["labels"] = ["owl", "dog", "cat"]
    (tmp_path / "net" / "config.json").write_text(json.dumps(config))
    weights = (owls / "model.safetensors").read_bytes()
    (tmp_path / "net" / "model.safetensors").write_bytes(weights)
    given = ["eval", str(packed), "--data", images, "--against", str(tmp_path / "net")]
    assert run(given) == 2
    assert "class 0 of" in capsys.readouterr().err
