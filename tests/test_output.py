"""Files of results: refused early, whole or absent."""

from __future__ import annotations

import errno
import json
import os

import pytest

from edgeqat.errors import OutputError, StorageError
from edgeqat.output import check_file, json_text, whole_file, write_json


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


LINKS = {
    "a link": ("out.json", "disk/real.json"),
    "a link to nothing yet": ("out.json", "disk/new.json"),
    "a link to a link": ("out.json", "other.json"),
    "a link on the way": ("way/real.json", "disk/real.json"),
}


@pytest.fixture(params=LINKS)
def linked(request, tmp_path):
    """A file reached over a link, and the file itself."""
    (tmp_path / "disk").mkdir()
    (tmp_path / "disk" / "real.json").write_text("before")
    (tmp_path / "other.json").symlink_to("disk/real.json")
    (tmp_path / "way").symlink_to("disk")
    name, target = LINKS[request.param]
    if name == "out.json":
        (tmp_path / name).symlink_to(target)
    return tmp_path / name, (tmp_path / target).resolve()


def test_a_file_behind_a_link_is_replaced_where_it_is(linked):
    file, target = linked
    was_link = file.is_symlink()
    check_file(file)
    with whole_file(file) as part:
        assert part.parent == target.parent  # on the same disk
        part.write_text("after")
    assert target.read_text() == "after" == file.read_text()
    assert file.is_symlink() == was_link and not target.is_symlink()
    assert not [path for path in target.parent.iterdir() if path.name.startswith(".")]


def test_a_link_into_no_folder_is_refused(tmp_path):
    (tmp_path / "out.json").symlink_to(tmp_path / "gone" / "out.json")
    with pytest.raises(OutputError, match="does not exist; make it first"):
        check_file(tmp_path / "out.json")


def test_numbers_that_are_not_finite_are_null_in_json(tmp_path):
    nan, inf = float("nan"), float("inf")
    values = {"a": nan, "b": [inf, 1.5, (-inf,)], "c": {1, 2}, "d": {"e": "NaN"}}
    write_json(tmp_path / "a.json", values, default=lambda value: [*sorted(value), nan])

    def refused(name):
        raise AssertionError(name)

    found = json.loads((tmp_path / "a.json").read_text(), parse_constant=refused)
    assert found == {"a": None, "b": [None, 1.5, [None]], "c": [1, 2, None], "d": {"e": "NaN"}}
    assert json_text({"a": nan}, indent=None) == '{"a": null}\n'
