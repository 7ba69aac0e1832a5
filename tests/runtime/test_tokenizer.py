"""Tokens without transformers: the same ids and text, and nothing heavy imported on the way."""

from __future__ import annotations

import subprocess
import sys

import pytest
from marks import needs_kernels
from transformers import AutoTokenizer

from edgeqat.demo import model as demo
from edgeqat.errors import FormatError
from edgeqat.runtime.tokenizer import Tokenizer

TEXTS = [
    "Once upon a time",
    " 12 mills,\n\nand it's new: \u00e9t\u00e9 \U0001f30a",
    "",
    "<s> a </s>",
]

START = """
import sys
from edgeqat.cli import run
assert run(["generate", sys.argv[1], "--prompt", "the river", "--max-tokens", "3"]) == 0
assert not {"torch", "transformers"} & set(sys.modules), "heavy"
"""


@pytest.mark.parametrize("text", TEXTS)
def test_ids_and_text_are_those_of_transformers(text):
    ours, theirs = Tokenizer(demo.folder()), AutoTokenizer.from_pretrained(demo.folder())
    ids = theirs(text)["input_ids"]
    assert ours.encode(text) == ids
    assert ours.decode(ids) == theirs.decode(ids, skip_special_tokens=True)


def test_what_the_last_use_asked_for_is_not_heeded(tmp_path):
    theirs = AutoTokenizer.from_pretrained(demo.folder())
    theirs(TEXTS[0], truncation=True, max_length=2)
    theirs.pad_token = theirs.eos_token
    theirs(TEXTS[0], padding="max_length", max_length=60)
    theirs.backend_tokenizer.enable_truncation(2)
    theirs.save_pretrained(tmp_path)
    ids = Tokenizer(demo.folder()).encode(TEXTS[1])
    assert Tokenizer(tmp_path).encode(TEXTS[1]) == ids and 2 < len(ids) < 60


def test_a_damaged_file_is_refused(tmp_path):
    (tmp_path / "tokenizer.json").write_text("{")
    with pytest.raises(FormatError, match=r"tokenizer\.json: .* has no readable one"):
        Tokenizer(tmp_path)


@needs_kernels
def test_the_first_token_waits_for_neither_torch_nor_transformers(packed_folder):
    done = subprocess.run(
        [sys.executable, "-c", START, str(packed_folder)], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr[-2000:]
