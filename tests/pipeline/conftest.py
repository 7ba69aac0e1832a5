"""What the tests of the pipeline share."""

from __future__ import annotations

import pytest
from pictures import parquet

from edgeqat.cli import run
from edgeqat.recipe.recipe import Recipe

NETWORK = "mobilenetv2-x0.1-cifar10"


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


@pytest.fixture(scope="session")
def images(tmp_path_factory):
    """24 training and 9 held-out images of three classes, 16 pixels a side."""
    folder = tmp_path_factory.mktemp("images")
    size = {"width": 16, "height": 16}
    return str(parquet(parquet(folder, count=24, **size), "test", count=9, **size))


@pytest.fixture(scope="session")
def floating(images, tmp_path_factory):
    """A classifier's folder, as `edgeqat train` writes it."""
    folder = tmp_path_factory.mktemp("float") / "net"
    file = folder.parent / "float.yaml"
    file.write_text(
        f"model: {{name: {NETWORK}}}\nquant: {{scheme: w32}}\ndata: {{images: {{size: 16}}}}\n"
        "train: {epochs: 1, optimizer: sgd, batch_size: 6, learning_rate: 0.05}\n"
    )
    assert run(["train", "--recipe", str(file), "--data", images, "--output", str(folder)]) == 0
    return folder
