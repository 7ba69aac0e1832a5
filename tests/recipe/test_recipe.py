"""Recipes: defaults < file < command line, one-line errors, the resolved recipe repeats the run."""

from __future__ import annotations

import re

import pytest
import yaml

from edgeqat.errors import RecipeError, SchemeError
from edgeqat.recipe import files as recipes
from edgeqat.recipe.quant import QuantSection
from edgeqat.recipe.recipe import Recipe
from edgeqat.recipe.section import Section


@pytest.fixture
def write(tmp_path):
    def write(text: str):
        path = tmp_path / "run.yaml"
        path.write_text(text, encoding="utf-8")
        return path

    return write


def test_defaults_are_the_deployed_ones():
    recipe = recipes.load(None)
    assert recipe.quant.scheme == "w4a8kv4"
    assert (recipe.quant.weight.granularity, recipe.quant.weight.group_size) == ("per_group", 128)
    assert recipe.quant.activation.mode == "dynamic"
    assert recipe.quant.kv.sink_tokens == 4
    assert recipe.quant.embedding_bits == 8


def test_the_command_line_wins_over_the_file_and_the_file_over_the_defaults(write):
    path = write("train: {steps: 7, batch_size: 3}\nseed: 5\n")
    recipe = recipes.load(path, {"train.steps": 9})
    assert (recipe.train.steps, recipe.train.batch_size, recipe.seed) == (9, 3, 5)
    assert recipe.train.accumulation == Recipe().train.accumulation


def test_a_falsy_override_is_given_and_not_absent(write):
    path = write("train: {steps: 7, compare_float: true}\nseed: 5\n")
    recipe = recipes.load(path, {"train.steps": 0, "seed": 0, "train.compare_float": False})
    assert (recipe.train.steps, recipe.seed, recipe.train.compare_float) == (0, 0, False)


def test_the_resolved_recipe_repeats_itself(write):
    recipe = recipes.load(write("quant: {scheme: w2a8, skip: ['*.down_proj']}\nseed: 3\n"))
    assert recipes.load(write(recipes.dump(recipe))) == recipe


def test_schemes_are_normalised():
    assert QuantSection(scheme="W4A8").scheme == "w4a8kv16"


def test_float_weights_leave_the_head_in_float():
    assert QuantSection(scheme="a8kv4").head_bits() == 16
    assert QuantSection(scheme="w4").head_bits() == 8


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("trian: {steps: 1}", ["trian", "unknown key", "'train'"]),
        ("train: {step: 1}", ["train.step", "unknown key", "'steps'"]),
        ("quant: {weight: {groupsize: 32}}", ["quant.weight.groupsize", "'group_size'"]),
        ("architecture: {hidden: 8}", ["architecture.hidden", "'hidden_size'"]),
        ("train: {steps: -1}", ["train.steps", "-1", "greater than or equal to 0"]),
        ("train: {steps: many}", ["train.steps", "many", "integer"]),
        ("train: {steps: 1.5}", ["train.steps", "1.5"]),
        ("train: {learning_rate: 0}", ["train.learning_rate", "0", "greater than 0"]),
        ("train: {learning_rate: .nan}", ["train.learning_rate"]),
        ("train: {accumulation: 0}", ["train.accumulation"]),
        ("train: {beta2: 0.999, bf16_states: true}", ["train.beta2: 0.999", "bf16_states", "0.99"]),
        ("train: {optimizer: sgd, bf16_states: true}", ["train.bf16_states", "AdamW"]),
        (
            "{train: {method: lowrank}, quant: {weight: {scale: minmax}}}",
            ["'lowrank'", "'learned'"],
        ),
        ("{train: {method: lowrank}, quant: {scheme: a8kv4}}", ["'lowrank'", "quantized weights"]),
        ("data: {context: 1}", ["data.context", "1"]),
        ("distill: {weight: 1.5}", ["distill.weight", "1.5"]),
        ("distill: {temperature: 0}", ["distill.temperature"]),
        ("quant: {weight: {group_size: 0}}", ["quant.weight.group_size", "0", "multiple of 32"]),
        ("quant: {weight: {group_size: 48}}", ["quant.weight.group_size", "48"]),
        ("quant: {weight: {group_size: -32}}", ["quant.weight.group_size", "-32"]),
        ("quant: {weight: {granularity: row}}", ["quant.weight.granularity", "row"]),
        ("quant: {embedding_bits: 5}", ["quant.embedding_bits", "5"]),
        ("quant: {kv: {sink_tokens: -1}}", ["quant.kv.sink_tokens", "-1"]),
        (
            "quant: {kv: {llama_cpp: true, sink_tokens: 0, key_offset: false}, adaptive: 0.5, "
            "scheme: w4a4kv4}",
            ["kv.llama_cpp", "it needs no adaptive.share"],
        ),
        ("quant: {kv: {llama_cpp: true}}", ["it needs kv.sink_tokens=0, kv.key_offset=false"]),
        ("train: 5", ["train"]),
        ("quant: {skip: lm_head}", ["quant.skip"]),
        ("train: {steps: true}", ["train.steps", "True", "where a number or a name belongs"]),
        ("quant: {adaptive: true}", ["quant.adaptive", "True", "on or off"]),
        ("quant: {adaptive: {share: true}}", ["quant.adaptive.share", "True", "on or off"]),
        ("quant: {adaptive: {rule: reversed}}", ["rule: reversed", "add for example --adaptive"]),
        ("coreset: true", ["coreset", "True", "on or off"]),
        ("version: 99", ["version", "99", "update edgeqat"]),
        ("version: new", ["version", "new"]),
        ("- a list", ["mapping"]),
        ("train: {steps: 1", ["YAML"]),
        ("model: !!python/object/apply:os.getcwd []", ["YAML"]),
    ],
)
def test_faults_are_named_in_one_line(write, text, words):
    with pytest.raises(RecipeError) as caught:
        recipes.load(write(text))
    message = str(caught.value)
    assert "\n" not in message
    assert caught.value.exit_code == 2
    assert [word for word in words if word not in message] == []


def test_a_bad_scheme_is_a_scheme_error(write):
    with pytest.raises(SchemeError, match="9-bit weights"):
        recipes.load(write("quant: {scheme: w9a8}"))


def test_a_section_that_is_left_empty_is_refused_in_one_line(write):
    with pytest.raises(RecipeError, match=r"^train") as caught:
        recipes.load(write("train:\n"))
    assert "\n" not in str(caught.value)


def test_unreadable_bytes_are_refused(tmp_path):
    path = tmp_path / "run.yaml"
    path.write_bytes(b"\xff\xfe\x00seed: 1")
    with pytest.raises(RecipeError, match="not readable YAML"):
        recipes.load(path)


def test_an_unknown_recipe_suggests_the_nearest_shipped_one():
    with pytest.raises(RecipeError, match="did you mean 'demo-float'"):
        recipes.load("demo-flaot")
    with pytest.raises(RecipeError, match="not a file"):
        recipes.load("no-such-file.yaml")


@pytest.mark.parametrize(
    ("entry", "expected"),
    [
        ("train.steps=20", ("train.steps", 20)),
        ("train.learning_rate=1e-4", ("train.learning_rate", 1e-4)),
        ("train.compare_float=false", ("train.compare_float", False)),
        ("data.train=a=b.txt", ("data.train", "a=b.txt")),
        ("quant.skip=[a, b]", ("quant.skip", ["a", "b"])),
        ("data.valid=null", ("data.valid", None)),
        ("quant.scheme=w4a8", ("quant.scheme", "w4a8")),
    ],
)
def test_set_entries_are_read_as_yaml(entry, expected):
    assert recipes.parse_set(entry) == expected


@pytest.mark.parametrize("entry", ["train.steps", "=5", "", "train.steps=[1"])
def test_other_set_entries_are_refused(entry):
    with pytest.raises(RecipeError, match="--set"):
        recipes.parse_set(entry)


def test_an_override_through_a_value_is_refused():
    with pytest.raises(RecipeError, match="seed"):
        recipes.load(None, {"seed.x": 1})


def test_shipped_recipes_are_valid_and_described():
    shipped = recipes.shipped()
    assert len(shipped) > 60
    for name, path in shipped.items():
        recipe = recipes.load(name)
        assert recipe.description, name
        assert "\n" not in recipe.description
        said = yaml.safe_load(path.read_text(encoding="utf-8"))
        assert "version" in said or "base" in said, name


def test_every_field_is_described():
    def walk(section):
        for name, field in section.model_fields.items():
            kinds = [field.annotation, *getattr(field.annotation, "__args__", ())]
            inner = [k for k in kinds if isinstance(k, type) and issubclass(k, Section)]
            if inner:
                walk(inner[0])
            else:
                assert field.description, f"{section.__name__}.{name}"
                assert not re.search(r"\s{2}", field.description)

    walk(Recipe)


def test_settings_of_a_coreset_that_is_not_chosen_are_refused():
    with pytest.raises(RecipeError, match=r"coreset\.selector: no coreset is chosen"):
        recipes.load("mobilenetv2-cifar100", {"coreset.selector": "random"})
    chosen = recipes.load("mobilenetv2-cifar100", {"coreset.selector": "res", "coreset.share": 0.5})
    assert (chosen.coreset.selector, chosen.coreset.share) == ("res", 0.5)
    name = "mobilenetv2-cifar100-w2a32-1pct-quarc"
    assert not recipes.load(name, {"coreset.share": None, "coreset.every": 3}).coreset.is_on


def test_steps_and_passes_together_are_refused():
    with pytest.raises(RecipeError, match=r"train\.epochs: 2 and train\.steps: 20 both say"):
        recipes.load(None, {"train.steps": 20, "train.epochs": 2})
    assert recipes.load(None, {"train.steps": 20, "train.epochs": None}).train.steps == 20


def test_off_stands_for_a_section_that_is_not_used(write):
    recipe = recipes.load(write("quant: {scheme: w4a4kv4, adaptive: off}\ncoreset: off"))
    assert recipe.quant.adaptive.share is None
    assert not recipe.coreset.chooses


def test_zipcache_is_said_to_choose_keys_and_values_alone():
    quant = QuantSection(scheme="w4a4kv4", adaptive={"share": 0.5, "rule": "zipcache"})
    said = quant.adaptive.words(quant.bits())
    assert said.startswith("adaptive: keys and values at 8 or 4 bit, activations stay as they are")
