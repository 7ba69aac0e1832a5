"""Every verb doing its job on a tiny model: what it prints and what it writes."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys

import pytest
import typer
import yaml
from command_lines import arguments, parse

import edgeqat
from edgeqat import checkpoint
from edgeqat.cli import app, run

FILES = {
    "README.md",
    "config.json",
    "generation_config.json",
    "metrics.json",
    "model.safetensors",
    "recipe.resolved.yaml",
    "tokenizer.json",
    "tokenizer_config.json",
}


@pytest.fixture
def call(capsys):
    """Run a command line that must succeed and return what it printed."""

    def call(*arguments):
        code = run([str(argument) for argument in arguments])
        output, error = capsys.readouterr()
        assert code == 0, error
        return output

    return call


@pytest.fixture
def quantize(call, model_folder, text_file):
    def quantize(*arguments):
        small = ["--set", "data.context=32", "--set", "train.batch_size=2", "--steps", 2]
        return call("quantize", "--model", model_folder, "--data", text_file, *small, *arguments)

    return quantize


def test_quantize_writes_the_files_of_the_contract(packed_folder):
    names = {path.name for path in packed_folder.iterdir()}
    assert names >= FILES
    assert not [name for name in names if name.startswith(".")]
    siblings = list(packed_folder.parent.iterdir())
    assert siblings == [packed_folder]
    checkpoint.verify(packed_folder)


def test_quantize_writes_the_metrics_of_the_contract(packed_folder, model_folder, text_file):
    metrics = json.loads((packed_folder / "metrics.json").read_text(encoding="utf-8"))
    assert metrics["scheme"] == "w4a8kv4"
    assert metrics["model"] == str(model_folder)
    assert metrics["data"] == str(text_file)
    assert metrics["seed"] == 0
    for row in ("float", "float_same_steps", "ptq", "qat"):
        assert metrics[row]["perplexity"] > 1, row
    assert "recovered" in metrics
    assert set(metrics["train"]) >= {
        "steps", "tokens_per_second", "seconds", "selection_seconds", "peak_rss_bytes"
    }  # fmt: skip
    assert metrics["train"]["steps"] == 2
    assert metrics["train"]["peak_rss_bytes"] > 50_000_000
    assert set(metrics["average_bits"]) == {"activations", "kv"}
    assert {"total", "weights", "embeddings"} <= set(metrics["bytes"])
    assert {"context", "stride", "bos"} <= set(metrics["evaluation"])
    header = checkpoint.read_header(packed_folder / "model.safetensors")
    ends = [entry["data_offsets"][1] for entry in header.values()]
    assert metrics["bytes"]["total"] == max(ends)


def test_quantize_saves_the_resolved_recipe(packed_folder):
    recipe = edgeqat.load_recipe(packed_folder / "recipe.resolved.yaml")
    assert recipe.train.steps == 2
    assert recipe.data.context == 32
    assert recipe.quant.scheme == "w4a8kv4"


def test_quantize_prints_the_table_and_where_it_wrote(quantize, tmp_path):
    text = quantize("--w3a8kv4", "--output", tmp_path / "out")
    assert "w3a8kv4" in text
    for row in ("float", "same 2 steps", "PTQ at w3a8kv4", "QAT at w3a8kv4"):
        assert row in text
    assert f"wrote {tmp_path / 'out'}" in text


def test_quantize_names_its_output_after_model_and_scheme(quantize, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    quantize("--kv4")
    assert (tmp_path / "tiny-llama-w16a16kv4" / "config.json").is_file()


def test_a_model_is_named_like_its_folder_from_inside_too(
    call, model_folder, text_file, tmp_path, monkeypatch
):
    place = tmp_path / "mine"
    shutil.copytree(model_folder, place)
    monkeypatch.chdir(place)
    small = ["--set", "data.context=32", "--set", "train.compare_float=false", "--steps", 0]
    call("quantize", "--model", ".", "--data", text_file, *small)
    assert "base_model: mine" in (place / "mine-w4a8kv4" / "README.md").read_text(encoding="utf-8")


def test_the_recipe_of_a_model_is_one_that_quantizes(monkeypatch):
    from edgeqat.cli.quantize import recipe_of

    assert recipe_of(None) == "demo" and recipe_of("runs/llama-8m-novels") == "llama-8m-novels"
    assert recipe_of("HuggingFaceTB/SmolLM2-135M") == "smollm2-135m" == recipe_of("smollm2-135m")
    assert recipe_of("runs/uniform") is None  # the recipe of a comparison
    assert recipe_of("demo-float") is None and recipe_of("mobilenetv2-cifar100-float") is None


def test_any_order_of_flags_and_settings_is_the_same_scheme(quantize, tmp_path):
    for number, flags in enumerate(
        (["--w4a8"], ["--scheme", "W4A8"], ["--set", "quant.scheme=w4a8"], ["--a8", "--w4"])
    ):
        quantize(*flags, "--output", tmp_path / str(number))
        recipe = edgeqat.load_recipe(tmp_path / str(number) / "recipe.resolved.yaml")
        assert recipe.quant.scheme == "w4a8kv16"


def test_the_command_line_wins_over_the_recipe(quantize, tmp_path):
    path = tmp_path / "run.yaml"
    path.write_text("seed: 3\ntrain: {steps: 50}\nquant: {scheme: w2}\n", encoding="utf-8")
    quantize("--recipe", path, "--w8a8kv8", "--output", tmp_path / "out")
    metrics = json.loads((tmp_path / "out" / "metrics.json").read_text(encoding="utf-8"))
    assert (metrics["scheme"], metrics["seed"], metrics["train"]["steps"]) == ("w8a8kv8", 3, 2)


def test_overwrite_replaces_what_edgeqat_wrote(quantize, tmp_path):
    quantize("--w4a8kv4", "--output", tmp_path / "out")
    quantize("--w3a8kv4", "--output", tmp_path / "out", "--overwrite")
    assert "w3a8kv4" in (tmp_path / "out" / "metrics.json").read_text(encoding="utf-8")
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


@pytest.mark.parametrize("measure", [[], ["--measure"]])
def test_a_dry_run_prints_the_plan_and_writes_nothing(quantize, tmp_path, monkeypatch, measure):
    monkeypatch.chdir(tmp_path)
    text = quantize("--w4a8kv4", "--dry-run", *measure)
    assert "model.layers.1.mlp.down_proj" in text
    assert "tied to model.embed_tokens" in text
    assert "predicted size" in text
    assert ("predicted QAT time" in text) == bool(measure)
    assert ("equal; nothing was kept" in text) == bool(measure)
    assert ("add --measure" in text) != bool(measure)
    assert list(tmp_path.iterdir()) == []


def test_text_comes_from_the_environment(call, model_folder, text_file, tmp_path, monkeypatch):
    monkeypatch.setenv("EDGEQAT_DATA", str(text_file))
    small = ["--set", "data.context=32", "--steps", 1]
    call("quantize", "--model", model_folder, "--w4", *small, "--output", tmp_path / "out")
    assert (tmp_path / "out" / "config.json").is_file()


def test_inspect_prints_layers_sizes_and_results(call, packed_folder):
    text = call("inspect", packed_folder)
    assert "LlamaForCausalLM at w4a8kv4, format 3" in text
    assert "model.layers.0.self_attn.q_proj" in text
    assert "dynamic 8" in text
    assert "tied to model.embed_tokens" in text
    size = (packed_folder / "model.safetensors").stat().st_size
    assert f"model.safetensors: {size} bytes" in text
    assert "qat: perplexity" in text
    assert "verified" not in text


def test_inspect_verifies_every_file(call, packed_folder):
    text = call("inspect", packed_folder, "--verify")
    assert f"verified {len(list(packed_folder.iterdir()))} files" in text


def test_generate_prints_the_text_alone(call, packed_folder):
    arguments = ["generate", packed_folder, "--prompt", "the old river", "--max-tokens", 8]
    text = call(*arguments)
    assert text.endswith("\n")
    assert len(text) > 1
    assert call(*arguments) == text
    sampled = [*arguments, "--temperature", 1.5, "--top-k", 50, "--top-p", 0.95]
    assert call(*sampled, "--seed", 1) == call(*sampled, "--seed", 1)


def test_recipes_lists_the_shipped_ones(call):
    text = call("recipes")
    lines = {line.split()[0]: line for line in text.splitlines()}
    assert "train" in lines["demo-float"]
    assert "demo model" in lines["demo-float"]


def leaves(section, prefix=""):
    found = {}
    for name, value in section.items():
        if value and isinstance(value, dict):
            found |= leaves(value, f"{prefix}{name}.")
        elif prefix + name != "architecture":
            found[prefix + name] = value
    return found


def test_a_recipe_is_printed_in_full(call):
    values = yaml.safe_load(call("recipes", "demo-float"))
    assert values == edgeqat.load_recipe("demo-float").model_dump(exclude_none=True)
    assert values["quant"]["kv"]["sink_tokens"] == 4  # a default


def test_fields_of_a_recipe_are_those_it_takes(call):
    lines = call("recipes", "--fields").splitlines()
    assert all(line.startswith("    ") and line.strip() for line in lines[1::2])
    told = dict(line.split(": ", 1) for line in lines[::2])
    values = leaves(edgeqat.Recipe().model_dump())
    assert {name for name in told if not name.startswith("architecture.")} == values.keys()
    for name, value in values.items():
        assert told[name].endswith("]") == (value is not None)
        assert value is None or told[name].endswith(f"[{json.dumps(value)}]")
    assert told["guide.distribution.form"] == 'cosine, kl ["cosine"]'


def test_train_writes_a_model_that_quantize_takes(call, text_file, tmp_path):
    path = tmp_path / "small.yaml"
    recipe = {
        "architecture": {
            "vocab_size": 300, "hidden_size": 32, "layers": 1, "head_dim": 16,
            "ffn": 48, "positions": 64,
        },
        "data": {"context": 16, "valid_blocks": 4},
        "train": {"batch_size": 2},
    }  # fmt: skip
    path.write_text(yaml.safe_dump(recipe), encoding="utf-8")
    options = ["--data", text_file, "--steps", 2]
    text = call("train", "--recipe", path, *options, "--output", tmp_path / "float")
    assert "perplexity" in text
    assert (tmp_path / "float" / "model.safetensors").is_file()
    packed = ["--w4a8kv4", "--set", "data.context=16", "--output", tmp_path / "packed"]
    call("quantize", "--model", tmp_path / "float", *options, *packed)
    call("inspect", tmp_path / "packed", "--verify")


def test_a_copied_folder_is_whole(call, packed_folder, tmp_path):
    copied = shutil.copytree(packed_folder, tmp_path / "elsewhere")
    call("inspect", copied, "--verify")
    edgeqat.load(copied)


VERBS = typer.main.get_command(app).commands


def test_the_verbs_are_the_ones_the_pages_describe():
    listed = {name for name, verb in VERBS.items() if not verb.hidden}
    assert listed == {
        "quantize", "train", "coreset", "eval", "compare", "verify", "bench", "report", "export",
        "generate", "chat", "serve", "inspect", "recipes",
    }  # fmt: skip


@pytest.mark.parametrize("verb", VERBS)
def test_every_verb_explains_itself(call, verb):
    """What it does, every argument and option in words, and two command lines that are right."""
    text = call(verb, "--help")
    assert text.startswith(f"Usage: edgeqat {verb} ")
    described = squeezed(text)
    assert squeezed(VERBS[verb].help.splitlines()[0]) in described
    for parameter in VERBS[verb].params:
        assert parameter.help, parameter.name
        assert squeezed(parameter.help) in described, parameter.name
        shown = parameter.opts[0] if parameter.param_type_name == "option" else parameter.name
        assert shown in text.replace("[exports]...", "exports").split()
    assert [arguments(line)[0] for line in examples(text)] == [verb, verb]


@pytest.mark.parametrize("verb", [[], *([verb] for verb in VERBS)], ids=lambda verb: verb or "all")
def test_every_help_ends_with_two_examples_that_parse(call, verb):
    lines = examples(call(*verb, "--help"))
    assert len(set(lines)) == 2
    for line in lines:
        assert line.startswith("edgeqat ")
        parse(arguments(line))


def squeezed(text):
    """Without blanks: help texts are wrapped, also behind a hyphen."""
    return "".join(text.split())


def examples(text):
    """The command lines at the end of a help text."""
    return [line.strip() for line in text.rstrip().rpartition("Examples:\n")[2].splitlines()]


@pytest.mark.parametrize("arguments", [(), ("--help",)])
def test_the_list_of_verbs_is_whole(call, arguments):
    text = call(*arguments)
    assert "Usage: edgeqat" in text
    assert "..." not in text.partition("Commands:")[2]


def test_the_version_is_that_of_the_package(call):
    assert call("--version") == f"edgeqat {edgeqat.__version__}\n"


def test_the_command_line_stays_quiet_on_stderr_from_outside(tmp_path):
    command = [
        sys.executable,
        "-m",
        "edgeqat.cli",
        "quantize",
        "--model",
        str(tmp_path / "nothing"),
    ]
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path)
    assert done.returncode == 2
    assert done.stdout == ""
    assert len(done.stderr.splitlines()) == 1
    assert list(tmp_path.iterdir()) == []


def test_the_demo_is_quantized_inspected_and_continued(call, tmp_path):
    small = ["--steps", 2, "--set", "data.valid_blocks=8", "--set", "train.compare_float=false"]
    text = call("quantize", "--model", "demo", "--w4a8kv4", *small, "--output", tmp_path / "out")
    assert "QAT at w4a8kv4" in text
    metrics = json.loads((tmp_path / "out" / "metrics.json").read_text(encoding="utf-8"))
    floating = metrics["float"]["perplexity"]
    assert floating < metrics["ptq"]["perplexity"] < 1.5 * floating
    assert metrics["bytes"]["total"] < metrics["bytes"]["fp16"] / 3
    call("inspect", tmp_path / "out", "--verify")
    assert call("generate", tmp_path / "out", "--prompt", "The import statement", "--max-tokens", 5)
