"""The error tree: exit codes of the command line and hints."""

from __future__ import annotations

import pytest

import edgeqat
from edgeqat import errors


def test_wrong_use_exits_with_2_and_failed_work_with_1():
    assert errors.Interrupted.exit_code == 130  # as shells have it
    wrong_use = {"SchemeError", "RecipeError", "DataError", "ModelError", "OutputError"}
    for name, kind in vars(errors).items():
        if isinstance(kind, type) and issubclass(kind, errors.EdgeQATError):
            if kind is errors.Interrupted:
                continue
            assert kind.exit_code == (2 if name in wrong_use | {"UsageError"} else 1), name


def test_a_near_name_is_suggested_and_a_far_one_lists_all():
    assert errors.nearest("stesp", ["steps", "seed"]) == "did you mean 'steps'?"
    assert errors.nearest("xyz", ["steps", "seed"]) == "known: seed, steps"
    assert errors.nearest("llama-58m", ["smollm-135m"]) == "known: smollm-135m"  # another model


def test_a_long_list_of_names_is_cut():
    found = errors.nearest("xyz", [f"name-{n:02}" for n in range(40)])
    assert found.startswith("known: name-00, name-01")
    assert found.endswith("name-23, ... (40 in all)")


TREE = [kind for kind in vars(errors).values() if isinstance(kind, type)]


def test_a_caller_can_catch_every_error_by_its_public_name():
    assert len(TREE) == 12
    for kind in TREE:
        assert getattr(edgeqat, kind.__name__) is kind
        assert kind.__name__ in edgeqat.__all__
        assert issubclass(kind, edgeqat.EdgeQATError)


def test_a_caller_tells_wrong_data_from_a_wrong_model(tmp_path):
    def quantize(**sections):
        train = {"steps": 0, "compare_float": False}
        recipe = edgeqat.Recipe.model_validate({"train": train, **sections})
        edgeqat.quantize(recipe, tmp_path / "out")

    with pytest.raises(edgeqat.DataError, match=r"data\.root"):
        quantize(data={"root": str(tmp_path / "missing")})
    with pytest.raises(edgeqat.ModelError, match="is not a folder"):
        quantize(model={"name": str(tmp_path / "missing")})
    with pytest.raises(edgeqat.SchemeError):
        edgeqat.Scheme.parse("w9")
    with pytest.raises(edgeqat.FormatError):
        edgeqat.load(tmp_path)
    (tmp_path / "out").mkdir()
    with pytest.raises(edgeqat.OutputError, match="exists"):
        quantize(data={"train": "demo"})
    with pytest.raises(edgeqat.UsageError):  # all of them but the fourth
        edgeqat.load_recipe("no-such-recipe")


def test_public_names_are_sorted_few_and_found():
    assert edgeqat.__all__ == sorted(edgeqat.__all__)
    assert len(set(edgeqat.__all__) - {kind.__name__ for kind in TREE}) <= 24
    for name in edgeqat.__all__:
        assert callable(getattr(edgeqat, name)), name
    assert set(edgeqat.__all__) <= set(dir(edgeqat))


def test_other_names_are_attribute_errors():
    assert not hasattr(edgeqat, "quantise")
