"""What the tests of the pipeline share."""

from __future__ import annotations

import pytest

from edgeqat.recipe.recipe import Recipe


@pytest.fixture
def recipe(model_folder, text_file):
    def recipe(**changes):
        values = {
            "model": {"name": str(model_folder)},
            "quant": {"scheme": "w4a8kv4"},
            "data": {"root": str(text_file), "context": 32, "valid_blocks": 4},
            "train": {"steps": 2, "batch_size": 2, "log_steps": 1, "compare_float": False},
        }
        for section, value in changes.items():
            values[section] = {**values.get(section, {}), **value} if value else value
        return Recipe.model_validate(values)

    return recipe
