"""Files of results: refused early, whole or absent."""

from __future__ import annotations

import errno
import os

import pytest

from edgeqat.errors import OutputError, StorageError
from edgeqat.output import check_file, whole_file, write_json


def test_a_file_that_cannot_be_written_is_refused(tmp_path):
    there = tmp_path / "there.json"
    there.write_text("{}")
    check_file(None, there, tmp_path / "new.json")
    with pytest.raises(OutputError, match="exists; choose another"):
        check_file(there, overwrite=False)
    with pytest.raises(OutputError, match="is a folder; name a file"):
        check_file(tmp_path)
    with pytest.raises(OutputError, match="does not exist; make it first"):
        check_file(tmp_path / "no" / "where.json")


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_a_folder_that_cannot_be_written_is_refused(tmp_path):
    tmp_path.chmod(0o500)
    with pytest.raises(OutputError, match="cannot be written"):
        check_file(tmp_path / "new.json")


def test_a_file_is_replaced_whole(tmp_path):
    file = tmp_path / "a.json"
    file.write_text("before")
    with whole_file(file) as part:
        part.write_text("after")
        assert file.read_text() == "before"
    assert file.read_text() == "after"
    assert [path.name for path in tmp_path.iterdir()] == ["a.json"]


@pytest.mark.parametrize(
    ("raised", "told", "match"),
    [
        (OSError(errno.ENOSPC, "No space left on device"), StorageError, "No space left .* free"),
        (RuntimeError("io (os error 28)"), StorageError, r"a\.json' failed \(io \(os error 28\)"),
        (KeyboardInterrupt("stop"), KeyboardInterrupt, "stop"),
        (ValueError("ours"), ValueError, "ours"),
    ],
)
def test_a_failure_leaves_what_was_there(tmp_path, raised, told, match):
    file = tmp_path / "a.json"
    file.write_text("before")
    with pytest.raises(told, match=match), whole_file(file) as part:
        part.write_text("half")
        raise raised
    assert [path.read_text() for path in tmp_path.iterdir()] == ["before"]


def test_json_keeps_words_readable(tmp_path):
    write_json(tmp_path / "a.json", {"name": "Größe", "set": {1}}, default=sorted)
    assert (tmp_path / "a.json").read_text(encoding="utf-8") == (
        '{\n  "name": "Größe",\n  "set": [\n    1\n  ]\n}\n'
    )
