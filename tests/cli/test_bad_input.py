"""Wrong use, one case a row: one line on stderr, the right exit code, nothing left behind."""

from __future__ import annotations

import json
import shutil

import pytest
import tiny
from transformers import GPT2Config, GPT2LMHeadModel, OPTConfig, OPTForCausalLM

from edgeqat.cli import run


@pytest.fixture
def refused(tmp_path, monkeypatch, capsys):
    """Run one command line that must fail; `leaves` are the files that were there before."""
    place = tmp_path / "place"
    place.mkdir()
    monkeypatch.chdir(place)

    def refused(code, words, *arguments):
        before = sorted(tmp_path.rglob("*"))
        assert run([str(argument) for argument in arguments]) == code
        output, error = capsys.readouterr()
        lines = error.splitlines()
        assert len(lines) == 1, error
        assert lines[0].startswith("error: ")
        assert [word for word in words if word not in lines[0]] == [], lines[0]
        assert output == "" or arguments[0] == "inspect"
        assert sorted(tmp_path.rglob("*")) == before

    return refused


@pytest.fixture
def quantize(refused, model_folder, text_file):
    """A whole `edgeqat quantize`, to which the faulty arguments are added; the last one wins."""

    def quantize(code, words, *arguments, data=text_file):
        refused(
            code, words, "quantize", "--model", model_folder, "--data", data,
            "--steps", 1, "--set", "data.context=32", *arguments,
        )  # fmt: skip

    return quantize


SETTINGS = {
    "a weight width": (["--w9a8"], ["scheme", "w9a8", "9-bit weights", "choose"]),
    "a cache width": (["--w4a8kv5"], ["scheme", "w4a8kv5", "5-bit KV cache"]),
    "a scheme": (["--scheme", "int4"], ["scheme", "int4", "w4a8kv4"]),
    "a float scheme": (["--w16a16kv16"], ["scheme", "--w4a8kv4"]),
    "two schemes": (["--w4a8kv4", "--w3a8"], ["scheme", "--w4a8kv4 --w3a8", "w two widths"]),
    "a scheme twice": (["--w4a8kv4", "--scheme", "w4"], ["scheme", "--w4a8kv4", "leave one out"]),
    "a float recipe": (["--recipe", "demo-float"], ["architecture", "edgeqat train"]),
    "a recipe": (["--recipe", "demo-flaot"], ["recipe", "demo-flaot", "'demo-float'"]),
    "a recipe file": (["--recipe", "no.yaml"], ["recipe", "no.yaml"]),
    "a key": (["--set", "train.setps=1"], ["train.setps", "did you mean 'steps'"]),
    "a section": (["--set", "trian.steps=1"], ["trian", "did you mean 'train'"]),
    "a setting": (["--set", "train.steps"], ["--set", "train.steps", "a.b=value"]),
    "steps": (["--steps", "-1"], ["train.steps", "-1"]),
    "a share above 1": (["--adaptive", "1.5"], ["quant.adaptive.share", "1.5", "less than or eq"]),
    "a share below 0": (["--adaptive", "-0.1"], ["quant.adaptive.share", "-0.1", "greater than"]),
    "a share of nothing": (
        ["--w4a16kv16", "--adaptive", "0.5"],
        ["quant", "adaptive.share: 0.5", "w4a16kv16", "--w4a4kv4"],
    ),
    "a share that is no number": (["--set", "quant.adaptive=half"], ["adaptive.share", "half"]),
    "a rule": (["--set", "quant.adaptive.rule=best"], ["quant.adaptive.rule", "best"]),
    "a guide's layer": (
        ["--set", "guide.entropy.weight=1", "--set", "guide.entropy.layers=[7]"],
        ["guide.entropy.layers", "7", "2 (0 to 1)"],
    ),
    "a guide's form": (["--set", "guide.entropy.form=wide"], ["guide.entropy.form", "wide"]),
    "no number": (["--steps", "few"], ["--steps", "'few'", "integer"]),
    "no whole number": (["--seed", "1.5"], ["--seed", "'1.5'", "integer"]),
    "a checkpoint interval": (["--set", "train.save_steps=-1"], ["train.save_steps", "-1"]),
    "a seed": (["--seed", "-1"], ["seed", "-1"]),
    "a large seed": (["--seed", "5000000000"], ["seed", "5000000000", "4294967296"]),
    "a group size": (
        ["--set", "quant.weight.group_size=0"],
        ["quant.weight.group_size", "0", "multiple of 32"],
    ),
    "a learning rate": (["--set", "train.learning_rate=-1"], ["train.learning_rate", "-1"]),
    "a context": (["--set", "data.context=4096"], ["data.context", "4096", "128"]),
    "an option": (["--stpes", "3"], ["--stpes"]),
    "a model": (["--model", "someone/nothing"], ["model", "someone/nothing", "HF_HOME"]),
    "a model path": (["--model", "./nothing"], ["model", "./nothing", "not a folder"]),
    "a weights file": (["--weights", "no.safetensors"], ["model.weights", "no.safetensors"]),
    "a teacher": (["--set", "distill.teacher=./nothing"], ["./nothing", "not a folder"]),
    "pickled weights": (["--weights", "model.bin"], ["model.bin", "pickled", "save_pretrained"]),
    "no output": (["--output", ""], ["output", "exists"]),
    "data of a mix": (["--data", "nothing.txt"], ["data", "nothing.txt", "does not exist"]),
    "line breaks": (["--scheme", "w4\na8"], ["scheme"]),
    "line breaks in a value": (["--set", 'data.context="a\\nb"'], ["data.context"]),
}


@pytest.mark.parametrize("case", SETTINGS)
def test_a_wrong_setting_is_refused(quantize, case):
    arguments, words = SETTINGS[case]
    quantize(2, words, *arguments)


@pytest.mark.parametrize(
    ("raw", "words"),
    [
        (b"", ["text.txt", "less than one block"]),
        (b"the old river", ["text.txt", "less than one block of data.context 32"]),
        (tiny.text(30).encode(), ["text.txt", "too few"]),
        (b"caf\xe9 " * 100, ["text.txt", "not UTF-8"]),
    ],
    ids=["empty", "short", "one block", "not UTF-8"],
)
def test_unusable_text_is_refused(quantize, tmp_path, raw, words):
    (tmp_path / "text.txt").write_bytes(raw)
    quantize(2, ["data", *words], data=tmp_path / "text.txt")


def test_a_folder_without_text_is_refused(quantize, tmp_path):
    (tmp_path / "empty").mkdir()
    quantize(2, ["data", "empty", "holds no"], data=tmp_path / "empty")


def test_no_text_at_all_is_refused(refused, model_folder):
    words = ["data.train", "--data", "EDGEQAT_DATA"]
    refused(2, words, "compare", model_folder, "--set", "data.context=32")


def test_text_of_the_command_line_is_not_dropped_for_the_demo_s(quantize, tmp_path):
    (tmp_path / "run.yaml").write_text("data: {train: demo}\n", encoding="utf-8")
    missing = tmp_path / "nothing.txt"
    words = ["nothing.txt", "does not exist"]
    quantize(2, words, "--recipe", tmp_path / "run.yaml", "--data", missing, "--dry-run")


def test_an_existing_output_is_refused(quantize, tmp_path):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "thesis.tex").touch()
    quantize(2, ["output", "out", "--overwrite"], "--output", tmp_path / "out")
    words = ["output", "out", "not a folder edgeqat wrote"]
    quantize(2, words, "--output", tmp_path / "out", "--overwrite")
    quantize(2, ["output", "--overwrite"], "--output", tmp_path / "out", "--dry-run")


def test_an_output_below_a_file_is_refused(quantize, tmp_path):
    (tmp_path / "file").touch()
    quantize(2, ["output", "file", "cannot be"], "--output", tmp_path / "file" / "out")


def test_a_failed_run_leaves_no_parents_of_its_output(quantize, tmp_path):
    output = tmp_path / "deep" / "er" / "out"
    quantize(2, ["data.root"], "--output", output, data=tmp_path / "nothing.txt")


@pytest.fixture
def broken(model_folder, tmp_path):
    return shutil.copytree(model_folder, tmp_path / "broken")


def test_a_folder_with_pickled_weights_is_refused(quantize, broken):
    (broken / "model.safetensors").unlink()
    (broken / "pytorch_model.bin").write_bytes(b"\x80\x04.")
    words = ["model", "broken", "pickled", "pytorch_model.bin", "convert", "save_pretrained"]
    quantize(2, words, "--model", broken)


def test_truncated_weights_are_refused(quantize, broken):
    path = broken / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-100])
    quantize(2, ["model", "broken", "cannot be loaded"], "--model", broken)


@pytest.mark.parametrize("raw", [b"", b"\xff" * 200, b"\x08" + b"\0" * 7 + b"{]  [[}}"], ids=len)
def test_corrupt_weights_are_refused(quantize, broken, tmp_path, raw):
    (broken / "model.safetensors").write_bytes(raw)
    quantize(2, ["model", "broken", "cannot be loaded"], "--model", broken)
    weights = tmp_path / "corrupt.safetensors"
    weights.write_bytes(raw)
    quantize(2, ["model.weights", "corrupt.safetensors"], "--weights", weights)


def test_a_folder_without_config_is_refused(quantize, broken):
    (broken / "config.json").unlink()
    quantize(2, ["model", "broken", "config.json"], "--model", broken)


def test_a_folder_without_tokenizer_is_refused(quantize, broken):
    for path in broken.glob("tokenizer*"):
        path.unlink()
    quantize(2, ["tokenizer", "broken"], "--model", broken)


def test_a_model_that_gguf_cannot_hold_is_refused_before_training(quantize, tmp_path):
    model = tmp_path / "gpt2"
    tiny.model(GPT2LMHeadModel, GPT2Config).save_pretrained(model)
    tiny.tokenizer().save_pretrained(model)
    wrong = ["--model", model, "--target", "gguf"]
    quantize(2, ["target", "gguf", "'gpt2'", "leave out --target"], *wrong)


def test_an_unsupported_architecture_is_refused(quantize, tmp_path):
    small = OPTConfig(hidden_size=32, num_hidden_layers=1, num_attention_heads=2, vocab_size=320)
    OPTForCausalLM(small).save_pretrained(tmp_path / "opt")
    tiny.tokenizer().save_pretrained(tmp_path / "opt")
    quantize(2, ["'opt' is not supported", "llama"], "--model", tmp_path / "opt")


def test_a_packed_folder_is_no_model_to_start_from(quantize, packed_folder):
    quantize(2, ["model", "quantized already"], "--model", packed_folder)


def test_a_teacher_of_another_vocabulary_is_refused(quantize, tmp_path):
    tiny.llama(vocab_size=400).save_pretrained(tmp_path / "teacher")
    setting = f"distill.teacher={tmp_path / 'teacher'}"
    words = ["distill.teacher", "vocabulary of 400", "320"]
    quantize(2, words, "--set", setting, "--set", "train.compare_float=false", "--dry-run")
    quantize(2, words, "--set", setting)


def test_a_newer_recipe_is_refused(quantize, tmp_path):
    (tmp_path / "run.yaml").write_text("version: 2\n", encoding="utf-8")
    words = ["version", "2", "update edgeqat"]
    quantize(2, words, "--recipe", tmp_path / "run.yaml")


@pytest.mark.parametrize("verb", ["inspect", "generate"])
@pytest.mark.parametrize("damage", ["nothing", "file", "empty", "float", "cut", "config", "newer"])
def test_a_folder_that_is_not_ours_is_refused(
    refused, tmp_path, model_folder, packed_folder, verb, damage
):
    folder = tmp_path / "folder"
    words = ["folder"]
    if damage == "empty":
        folder.mkdir()
    elif damage == "file":
        folder.write_text("text", encoding="utf-8")
        words = ["folder", "is a file"]
    elif damage == "float":
        shutil.copytree(model_folder, folder)
        words = ["quantization_config", "edgeqat quantize"]
    elif damage != "nothing":
        shutil.copytree(packed_folder, folder)
    if damage == "cut":
        path = folder / "model.safetensors"
        path.write_bytes(path.read_bytes()[:100])
        words = ["model.safetensors"]
    if damage == "config":
        (folder / "config.json").write_text("{", encoding="utf-8")
        words = ["config.json"]
    if damage == "newer":
        config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
        config["quantization_config"]["format_version"] = 9
        (folder / "config.json").write_text(json.dumps(config), encoding="utf-8")
        words = ["format_version", "9", "update edgeqat"]
    refused(1, words, verb, folder, *(["--prompt", "x"] if verb == "generate" else []))


def test_broken_results_are_refused(refused, packed_folder, tmp_path):
    folder = shutil.copytree(packed_folder, tmp_path / "folder")
    for raw in ("{", "[]", '{"qat": 3}'):
        (folder / "metrics.json").write_text(raw, encoding="utf-8")
        refused(1, ["metrics.json"], "inspect", folder)


def test_verifying_a_changed_file_is_refused(refused, packed_folder, tmp_path):
    folder = shutil.copytree(packed_folder, tmp_path / "folder")
    with open(folder / "README.md", "a", encoding="utf-8") as file:
        file.write("better numbers")
    refused(1, ["README.md", "changed"], "inspect", folder, "--verify")


GENERATE = {
    "no whole number": (["--prompt", "x", "--max-tokens", "many"], ["--max-tokens", "'many'"]),
    "no number": (["--prompt", "x", "--temperature", "hot"], ["--temperature", "'hot'"]),
    "no prompt": ([], ["--prompt"]),
    "empty prompt": (["--prompt", ""], ["prompt", "empty"]),
    "no tokens": (["--prompt", "x", "--max-tokens", "0"], ["--max-tokens", "'0'"]),
    "too many tokens": (["--prompt", "x", "--max-tokens", "999"], ["max-tokens", "128"]),
    "a negative temperature": (["--prompt", "x", "--temperature", "-1"], ["--temperature", "'-1'"]),
    "a share above one": (["--prompt", "x", "--top-p", "1.5"], ["--top-p", "'1.5'"]),
}


EVALUATE = {
    "a mode": (["--mode", "twice"], ["mode", "'twice'", "one-pass"]),
    "no float model": (["--against", "./nowhere"], ["model", "'./nowhere'"]),
    "no text": (["--data", "nowhere.txt"], ["data", "nowhere.txt"]),
    "no place": (["--output", "no/where.json"], ["output", "no/where.json"]),
    "blocks": (["--blocks", "-1"], ["--blocks", "-1"]),
}


@pytest.mark.parametrize("case", EVALUATE)
def test_wrong_evaluation_options_are_refused(refused, packed_folder, case):
    arguments, words = EVALUATE[case]
    refused(2, words, "eval", packed_folder, *arguments)


def test_a_float_model_of_another_vocabulary_is_refused(refused, packed_folder, tmp_path):
    tiny.llama(vocab_size=400).save_pretrained(tmp_path / "other")
    words = ["against", "400", "320"]
    refused(2, words, "eval", packed_folder, "--against", tmp_path / "other")


def test_a_float_folder_cannot_be_evaluated(refused, model_folder):
    refused(1, ["quantization_config", "edgeqat quantize"], "eval", model_folder)


@pytest.mark.parametrize("case", GENERATE)
def test_wrong_generation_options_are_refused(refused, packed_folder, case):
    arguments, words = GENERATE[case]
    refused(2, words, "generate", packed_folder, *arguments)


def test_training_needs_an_architecture(refused, tmp_path):
    (tmp_path / "run.yaml").write_text("seed: 0\n", encoding="utf-8")
    refused(2, ["architecture", "edgeqat train"], "train", "--recipe", tmp_path / "run.yaml")
    refused(2, ["--recipe"], "train")


def test_a_float_model_is_trained_from_scratch_on_all_data(refused, tmp_path):
    (tmp_path / "run.yaml").write_text("architecture: {}\n", encoding="utf-8")
    train = ["train", "--recipe", tmp_path / "run.yaml", "--set"]
    refused(2, ["coreset", "from scratch"], *train, "coreset.share=0.1")
    refused(2, ["model.weights", "from scratch"], *train, "model.weights=w.safetensors")
    refused(2, ["architecture", "heads 3", "hidden_size 128"], *train, "architecture.heads=3")


def test_what_the_system_refuses_is_one_line(quantize):
    quantize(1, ["x" * 300, "File name too long"], "--output", "x" * 300)


def test_an_unknown_recipe_cannot_be_printed(refused):
    refused(2, ["recipe", "demo-flaot", "did you mean 'demo-float'"], "recipes", "demo-flaot")
    refused(2, ["fields", "leave out 'demo'"], "recipes", "demo", "--fields")


def test_an_unknown_verb_is_refused(refused):
    refused(2, ["quantise"], "quantise")


@pytest.mark.parametrize(
    "error",
    [
        MemoryError(),
        RuntimeError(
            "[enforce fail at alloc_cpu.cpp:127] DefaultCPUAllocator: can't allocate memory"
        ),
        RuntimeError("CUDA out of memory. Tried to allocate 2.00 GiB"),
        RuntimeError("a mistake of ours"),
    ],
    ids=["python", "torch", "gpu", "ours"],
)
def test_a_lack_of_memory_is_one_line(error, monkeypatch, capsys):
    def fail(*_, **__):
        raise error

    monkeypatch.setattr("edgeqat.checkpoint.read_config", fail)
    if "ours" in str(error):
        with pytest.raises(RuntimeError):
            run(["inspect", "folder"])
        return
    assert run(["inspect", "folder"]) == 1
    assert capsys.readouterr().err.startswith("error: memory: not enough of it; lower")


def test_debug_shows_where_it_happened(model_folder):
    with pytest.raises(Exception, match="9-bit weights"):
        run(["quantize", "--model", str(model_folder), "--w9a8", "--debug"])


def test_an_interrupt_is_one_line(quantize, monkeypatch):
    def interrupt(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr("edgeqat.pipeline.quantize.load_task", interrupt)
    quantize(130, ["interrupted", "nothing was written"], "--w4a8kv4")
