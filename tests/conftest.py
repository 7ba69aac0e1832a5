"""Every test runs offline, on one thread, with a cache of its own, and leaves logging as it was."""

from __future__ import annotations

import gc
import logging
import os

os.environ.update(
    CUDA_VISIBLE_DEVICES="",
    HF_HUB_OFFLINE="1",
    HF_HUB_DISABLE_TELEMETRY="1",
    HF_HUB_DISABLE_PROGRESS_BARS="1",
    HF_DATASETS_DISABLE_PROGRESS_BARS="1",
    TRANSFORMERS_VERBOSITY="error",
    TOKENIZERS_PARALLELISM="false",
)
os.environ.pop("EDGEQAT_DATA", None)

import pytest
import tiny
import torch

from edgeqat import native
from edgeqat.cli import run

torch.set_num_threads(1)


def pytest_collection_finish():
    """What is imported stays: a quantization collects garbage four times, 0.2 s each with it."""
    gc.collect()
    gc.freeze()


@pytest.fixture(scope="session", autouse=True)
def _cache(tmp_path_factory):
    os.environ["EDGEQAT_CACHE"] = str(tmp_path_factory.mktemp("cache"))


@pytest.fixture(autouse=True)
def _logging():
    logger = logging.getLogger("edgeqat")
    before = logger.handlers, logger.level, logger.propagate
    yield
    logger.handlers, logger.level, logger.propagate = before


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)


def _instruction_sets():
    return [name for name, usable in native.isas().items() if usable] if native.library() else []


@pytest.fixture
def choose_isa():
    """native.choose_isa, undone after the test."""
    yield native.choose_isa
    native.choose_isa(None)


@pytest.fixture(params=_instruction_sets())
def isa(request, choose_isa):
    """Each instruction set that this machine has."""
    choose_isa(request.param)


@pytest.fixture(params=[1, 2])
def threads(request):
    """torch on so many threads."""
    before = torch.get_num_threads()
    torch.set_num_threads(request.param)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="session")
def text_file(tmp_path_factory):
    """A text of some 80 blocks of 64 tokens."""
    path = tmp_path_factory.mktemp("text") / "text.txt"
    path.write_text(tiny.text(), encoding="utf-8")
    return path


@pytest.fixture(scope="session")
def model_folder(tmp_path_factory):
    """A float model with its tokenizer, as save_pretrained writes it."""
    path = tmp_path_factory.mktemp("float") / "tiny-llama"
    tiny.llama().save_pretrained(path)
    tiny.tokenizer().save_pretrained(path)
    return path


@pytest.fixture(scope="session")
def packed_folder(tmp_path_factory, model_folder, text_file):
    """What `edgeqat quantize` writes: two steps at w4a8kv4."""
    path = tmp_path_factory.mktemp("packed") / "tiny-w4a8kv4"
    chosen = ["--set", "data.context=32", "--set", "train.batch_size=2"]
    arguments = ["quantize", "--model", str(model_folder), "--w4a8kv4", "--data", str(text_file)]
    assert run([*arguments, "--steps", "2", "--output", str(path), *chosen]) == 0
    return path
