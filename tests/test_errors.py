"""The error tree: exit codes of the command line and hints."""

from __future__ import annotations

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


def test_public_names_are_sorted_few_and_found():
    assert edgeqat.__all__ == sorted(edgeqat.__all__)
    assert len(edgeqat.__all__) <= 24
    for name in edgeqat.__all__:
        assert callable(getattr(edgeqat, name)), name
    assert set(edgeqat.__all__) <= set(dir(edgeqat))


def test_other_names_are_attribute_errors():
    assert not hasattr(edgeqat, "quantise")
