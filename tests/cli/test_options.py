"""Options that several verbs share."""

from __future__ import annotations

import pytest

from edgeqat.cli import options


@pytest.mark.parametrize(
    ("given", "values"),
    [
        (["a.txt"], {"data.root": "a.txt"}),
        (["self"], {"data.train": "self"}),
        (["self", "a.txt"], {"data.train": "self", "data.mix": {"a.txt": 0.5}}),
        (["a.txt", "self=0.2"], {"data.root": "a.txt", "data.mix": {"self": 0.2}}),
        (["self", "a=b"], {"data.train": "self", "data.mix": {"a=b": 0.5}}),
        (["self", "a=1", "b"], {"data.train": "self", "data.mix": {"a": 1.0, "b": 1 / 3}}),
    ],
)
def test_several_texts_are_a_mix(given, values):
    assert options.overrides(None, data__root=given) == values


def test_a_file_whose_name_looks_like_a_share_is_a_file(tmp_path):
    file = tmp_path / "a=0.5"
    file.write_text("text", encoding="utf-8")
    values = options.overrides(None, data__root=["self", str(file)])
    assert values["data.mix"] == {str(file): 0.5}
