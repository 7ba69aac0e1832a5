"""A recipe that names a base: what is merged, what is replaced, what is refused in one line."""

from __future__ import annotations

import os

import pytest
import yaml

from edgeqat.errors import RecipeError
from edgeqat.recipe import files as recipes


@pytest.fixture
def write(tmp_path):
    def write(name: str, text: str):
        path = tmp_path / name
        path.parent.mkdir(exist_ok=True)
        path.write_text(text, encoding="utf-8")
        return path

    return write


def leaves(values, prefix=""):
    """Every field of a recipe's values by its dotted name."""
    found = {}
    for key, value in values.items():
        inner = isinstance(value, dict)
        found |= leaves(value, f"{prefix}{key}.") if inner else {f"{prefix}{key}": value}
    return found


def test_a_recipe_changes_only_the_lines_it_gives(write):
    base = "seed: 5\ntrain: {steps: 7, batch_size: 3}\nquant: {kv: {sink_tokens: 2}, skip: [a, b]}"
    write("base.yaml", base)
    path = write("run.yaml", "base: base.yaml\ntrain: {steps: 9}\nquant: {skip: [c]}")
    recipe = recipes.load(path)
    assert (recipe.train.steps, recipe.train.batch_size, recipe.seed) == (9, 3, 5)
    assert (recipe.quant.kv.sink_tokens, recipe.quant.skip) == (2, ["c"])
    assert recipes.load(path, {"train.steps": 11}).train.steps == 11


def test_a_base_has_a_base_beside_itself(write):
    write("far/ground.yaml", "seed: 5\ntrain: {steps: 7}")
    write("far/middle.yaml", "base: ground.yaml\ntrain: {steps: 8, batch_size: 3}")
    recipe = recipes.load(write("run.yaml", "base: far/middle.yaml\ntrain: {batch_size: 4}"))
    assert (recipe.seed, recipe.train.steps, recipe.train.batch_size) == (5, 8, 4)


def test_a_shipped_recipe_is_a_base(write):
    name = "mobilenetv2-cifar100-w2a32-1pct-quarc"
    recipe = recipes.load(write("run.yaml", f"base: {name}\nquant: {{scheme: w3a32}}\n"))
    shipped = recipes.load(name)
    assert recipe.quant.scheme == "w3a16kv16"
    assert (recipe.coreset, recipe.train, recipe.correct) == (
        shipped.coreset, shipped.train, shipped.correct
    )  # fmt: skip


def test_the_resolved_recipe_names_no_base(write):
    recipe = recipes.load(write("run.yaml", "base: demo\nseed: 3"))
    resolved = recipes.dump(recipe)
    assert "base" not in yaml.safe_load(resolved)
    assert recipes.load(write("again.yaml", resolved)) == recipe


@pytest.mark.parametrize(
    ("base", "own", "expected"),
    [
        ("coreset: {share: 0.01, selector: res}", "coreset: 0.05", (0.05, None, "res")),
        ("coreset: 0.01", "coreset: {selector: acs}", (0.01, None, "acs")),
        ("coreset: {share: 0.01, selector: res}", "coreset: off", (None, None, "quarc")),
        ("coreset: chosen.json", "coreset: 0.05", (0.05, None, "quarc")),
        ("coreset: 0.05", "coreset: chosen.json", (0.05, "chosen.json", "quarc")),
    ],
)
def test_shorthands_are_sections_of_a_base_too(write, base, own, expected):
    write("base.yaml", base)
    section = recipes.load(write("run.yaml", f"base: base.yaml\n{own}")).coreset
    assert (section.share, section.file, section.selector) == expected


def test_an_override_finds_a_section_that_was_switched_off(write):
    write("base.yaml", "quant: {scheme: w4a4kv4, adaptive: {share: 0.5, rule: random}}")
    path = write("run.yaml", "base: base.yaml\nquant: {adaptive: off}\ncoreset: off")
    assert recipes.load(path).quant.adaptive.share is None
    changed = recipes.load(path, {"quant.adaptive.share": 0.25, "coreset.share": 0.1})
    assert (changed.quant.adaptive.share, changed.quant.adaptive.rule) == (0.25, "importance")
    assert changed.coreset.share == 0.1


def test_steps_replace_the_passes_of_a_base(write):
    write("base.yaml", "train: {epochs: 200}")
    own = recipes.load(write("run.yaml", "base: base.yaml\ntrain: {steps: 20}")).train
    assert (own.steps, own.epochs) == (20, None)
    back = recipes.load(write("back.yaml", "base: run.yaml\ntrain: {epochs: 2}")).train
    assert back.epochs == 2


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("base: missing.yaml", ["base", "missing.yaml", "not a file", "run.yaml"]),
        ("base: demo-flaot", ["base: 'demo-flaot'", "did you mean 'demo-float'", "run.yaml"]),
        ("base: run.yaml", ["'run.yaml' -> 'run.yaml'", "circle", "take `base` out"]),
        ("base: list.yaml", ["list.yaml", "mapping"]),
        ("base: broken.yaml", ["broken.yaml", "not readable YAML"]),
        ("base: newer.yaml", ["version", "99", "newer.yaml", "update edgeqat"]),
        ("base: [demo]", ["base", "['demo']", "run.yaml", "NAME or FILE"]),
        ("base: 5", ["base", "'5'", "NAME or FILE"]),
        ("base:", ["base: nothing", "NAME or FILE"]),
        ("quant: {base: demo}", ["quant.base", "unknown key"]),
        ("base: wrong.yaml", ["train.step", "unknown key", "'steps'"]),
    ],
)
def test_faults_of_a_base_are_named_in_one_line(write, text, words):
    write("list.yaml", "- a list")
    write("broken.yaml", "train: {steps: 1")
    write("newer.yaml", "version: 99")
    write("wrong.yaml", "train: {step: 1}")
    with pytest.raises(RecipeError) as caught:
        recipes.load(write("run.yaml", text))
    message = str(caught.value)
    assert "\n" not in message
    assert [word for word in words if word not in message] == []


def test_a_circle_names_every_file_of_it(write):
    write("one.yaml", "base: two.yaml")
    path = write("two.yaml", f"base: ..{os.sep}{write('x', '').parent.name}{os.sep}one.yaml")
    with pytest.raises(RecipeError, match=r"'two\.yaml' -> 'one\.yaml' -> 'two\.yaml' is a circle"):
        recipes.load(path)


def test_the_command_line_gives_the_base_as_its_recipe():
    with pytest.raises(RecipeError, match=r"base: 'demo' .*use --recipe demo"):
        recipes.load(None, {"base": "demo"})


@pytest.mark.parametrize("name", recipes.shipped())
def test_no_shipped_recipe_repeats_what_its_base_says(name):
    own = yaml.safe_load(recipes.shipped()[name].read_text(encoding="utf-8"))
    if "base" not in own:
        return
    base = leaves(recipes._expanded(recipes._read(recipes.find(own.pop("base")))))
    given = leaves(recipes._expanded(own))
    assert "description" in given, "its base's would be listed"
    assert [field for field, value in given.items() if base.get(field) == value] == []
