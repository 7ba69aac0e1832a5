"""Packed folders on disk: aligned tensors, hashes, whole or absent."""

from __future__ import annotations

import json

import pytest
import torch
from safetensors import safe_open

from edgeqat import checkpoint
from edgeqat.errors import FormatError, OutputError, StorageError


def tensors():
    return {
        "bias": torch.arange(3, dtype=torch.float32),
        "flag": torch.tensor([True]),
        "b.weight": torch.arange(64, dtype=torch.uint8).reshape(1, 1, 64),
        "a.weight": torch.arange(192, dtype=torch.uint8).reshape(1, 1, 192),
        "a.weight_scale": torch.ones(1, 1, 16, dtype=torch.float16),
        "half": torch.ones(5, dtype=torch.bfloat16),
        "count": torch.tensor([7]),
        "view": torch.arange(6.0).reshape(2, 3).T,
    }


def test_tensors_are_read_back_by_the_safetensors_library(tmp_path):
    path = tmp_path / "model.safetensors"
    checkpoint.write_tensors(path, tensors())
    with safe_open(path, framework="pt") as file:
        assert set(file.keys()) == set(tensors())
        for name, tensor in tensors().items():
            found = file.get_tensor(name)
            assert found.dtype == tensor.dtype
            assert torch.equal(found, tensor), name
    found = checkpoint.read_tensors(path)
    assert all(torch.equal(found[name], tensor) for name, tensor in tensors().items())


def test_tiles_start_on_64_bytes_of_the_file(tmp_path):
    path = tmp_path / "model.safetensors"
    checkpoint.write_tensors(path, tensors())
    raw = path.read_bytes()
    data = 8 + int.from_bytes(raw[:8], "little")
    header = checkpoint.read_header(path)
    assert data % 64 == 0
    assert "__metadata__" not in header
    for name, entry in header.items():
        start, end = (data + offset for offset in entry["data_offsets"])
        if entry["dtype"] == "U8":
            assert start % 64 == 0, name
            assert raw[start:end] == tensors()[name].numpy().tobytes()
        assert start % tensors()[name].element_size() == 0, name


def test_the_same_tensors_make_the_same_bytes(tmp_path):
    checkpoint.write_tensors(tmp_path / "a", tensors())
    checkpoint.write_tensors(tmp_path / "b", dict(reversed(tensors().items())))
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()


@pytest.mark.parametrize("keep", [0, 4, 8, 100, -1])
def test_a_truncated_tensor_file_is_a_format_error(tmp_path, keep):
    path = tmp_path / "model.safetensors"
    checkpoint.write_tensors(path, tensors())
    path.write_bytes(path.read_bytes()[:keep])
    with pytest.raises(FormatError, match=r"model\.safetensors") as caught:
        checkpoint.read_tensors(path)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "raw",
    [
        b"",
        b"\xff" * 64,
        (2).to_bytes(8, "little") + b"[]",
        (4).to_bytes(8, "little") + b"null",
        (8).to_bytes(8, "little") + b"\xff" * 8,
        (1 << 62).to_bytes(8, "little") + b"{}",
    ],
    ids=["empty", "ones", "list", "null", "not UTF-8", "huge"],
)
def test_a_damaged_header_is_a_format_error(tmp_path, raw):
    path = tmp_path / "model.safetensors"
    path.write_bytes(raw)
    with pytest.raises(FormatError, match=r"model\.safetensors") as caught:
        checkpoint.read_header(path)
    assert "\n" not in str(caught.value)


@pytest.fixture
def sealed(tmp_path):
    folder = tmp_path / "packed"
    folder.mkdir()
    (folder / "tokenizer.json").write_text("{}", encoding="utf-8")
    checkpoint.write_tensors(folder / checkpoint.WEIGHTS, tensors())
    quantization = {"quant_method": "edgeqat", "format_version": checkpoint.FORMAT_VERSION}
    config = {"id": 1, "rate": 0.1, "quantization_config": quantization}
    checkpoint.write_config(folder, config)
    return folder


def edit(folder, change):
    path = folder / checkpoint.CONFIG
    config = json.loads(path.read_text(encoding="utf-8"))
    change(config)
    path.write_text(json.dumps(config), encoding="utf-8")


def test_a_sealed_folder_verifies_and_names_every_file(sealed):
    config = checkpoint.verify(sealed)
    hashes = config["quantization_config"]["sha256"]
    assert set(hashes) == {path.name for path in sealed.iterdir()} - {checkpoint.CONFIG}


def test_the_layout_of_config_json_does_not_matter(sealed):
    edit(sealed, lambda config: None)
    checkpoint.verify(sealed)


@pytest.mark.parametrize(
    ("change", "word"),
    [
        (lambda c: c.update(id=2), "changed"),
        (lambda c: c["quantization_config"]["sha256"].clear(), "changed"),
        (lambda c: c["quantization_config"].update(config_sha256=""), "changed"),
        (lambda c: c["quantization_config"].pop("config_sha256"), r"config\.json"),
        (lambda c: c["quantization_config"].pop("sha256"), r"config\.json"),
        (lambda c: c.pop("quantization_config"), "quantization_config"),
        (lambda c: c.update(quantization_config=None), "quantization_config"),
        (lambda c: c["quantization_config"].update(quant_method="awq"), "'awq'"),
        (lambda c: c["quantization_config"].pop("quant_method"), "quant_method"),
        (lambda c: c["quantization_config"].update(format_version=99), "format_version: 99"),
        (lambda c: c["quantization_config"].pop("format_version"), "format_version"),
    ],
)
def test_a_changed_config_is_a_format_error(sealed, change, word):
    edit(sealed, change)
    with pytest.raises(FormatError, match=word) as caught:
        checkpoint.verify(sealed)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("raw", [b"", b"{", b"[]", b"3", b"\xff\xfe{}", b"null"])
def test_a_config_that_is_no_json_object_is_a_format_error(sealed, raw):
    (sealed / checkpoint.CONFIG).write_bytes(raw)
    with pytest.raises(FormatError, match=r"config\.json"):
        checkpoint.read_config(sealed)


def test_a_changed_or_missing_file_is_named(sealed):
    path = sealed / "tokenizer.json"
    path.write_text("{ }", encoding="utf-8")
    with pytest.raises(FormatError, match=r"^tokenizer\.json: .* was changed"):
        checkpoint.verify(sealed)
    path.unlink()
    with pytest.raises(FormatError, match=r"^tokenizer\.json: missing"):
        checkpoint.verify(sealed)


def test_a_folder_without_config_is_named(tmp_path):
    with pytest.raises(FormatError, match=r"^config\.json: .* has none"):
        checkpoint.read_config(tmp_path)


def write(folder):
    (folder / "recipe.resolved.yaml").write_text("seed: 0\n", encoding="utf-8")


def names(folder):
    return sorted(path.name for path in folder.iterdir())


def test_a_folder_appears_when_its_block_ends_well(tmp_path):
    with checkpoint.atomic_folder(tmp_path / "out") as folder:
        write(folder)
        assert not (tmp_path / "out").exists()
    assert names(tmp_path) == ["out"]
    assert names(tmp_path / "out") == ["recipe.resolved.yaml"]


@pytest.mark.parametrize("kind", [ValueError, KeyboardInterrupt, SystemExit])
def test_an_interrupted_block_leaves_nothing(tmp_path, kind):
    with pytest.raises(kind), checkpoint.atomic_folder(tmp_path / "out") as folder:
        write(folder)
        raise kind
    assert names(tmp_path) == []


def test_an_interrupted_block_leaves_no_parents_it_made(tmp_path):
    with pytest.raises(ValueError), checkpoint.atomic_folder(tmp_path / "a" / "b" / "out"):
        raise ValueError
    assert names(tmp_path) == []


@pytest.mark.parametrize(
    "error",
    [OSError(28, "No space left on device"), Exception("No space left on device (os error 28)")],
    ids=["ours", "Rust"],
)
def test_a_full_disk_is_one_line_and_leaves_nothing(tmp_path, error):
    with pytest.raises(StorageError, match="No space"), checkpoint.atomic_folder(tmp_path / "out"):
        raise error
    assert names(tmp_path) == []


def test_an_existing_folder_is_kept_without_overwrite(tmp_path):
    with checkpoint.atomic_folder(tmp_path / "out") as folder:
        write(folder)
    with (
        pytest.raises(OutputError, match="--overwrite"),
        checkpoint.atomic_folder(tmp_path / "out"),
    ):
        raise AssertionError
    assert names(tmp_path / "out") == ["recipe.resolved.yaml"]


def test_overwrite_replaces_the_whole_folder(tmp_path):
    with checkpoint.atomic_folder(tmp_path / "out") as folder:
        write(folder)
        (folder / "old").touch()
    with checkpoint.atomic_folder(tmp_path / "out", overwrite=True) as folder:
        write(folder)
    assert names(tmp_path) == ["out"]
    assert names(tmp_path / "out") == ["recipe.resolved.yaml"]


def test_an_interrupted_overwrite_keeps_the_old_folder(tmp_path):
    with checkpoint.atomic_folder(tmp_path / "out") as folder:
        write(folder)
    with (
        pytest.raises(ValueError),
        checkpoint.atomic_folder(tmp_path / "out", overwrite=True) as folder,
    ):
        raise ValueError
    assert names(tmp_path) == ["out"]
    assert names(tmp_path / "out") == ["recipe.resolved.yaml"]


def test_overwrite_never_replaces_what_edgeqat_did_not_write(tmp_path):
    other = tmp_path / "out"
    other.mkdir()
    (other / "thesis.tex").touch()
    with pytest.raises(OutputError, match="not a folder edgeqat wrote"):
        checkpoint.check_output(other, overwrite=True)
    file = tmp_path / "file"
    file.touch()
    with pytest.raises(OutputError, match="not a folder edgeqat wrote"):
        checkpoint.check_output(file, overwrite=True)


def test_a_place_below_a_file_cannot_be_written(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(OutputError, match="cannot be"):
        checkpoint.check_output(tmp_path / "file" / "deep" / "out", overwrite=False)


@pytest.mark.parametrize("kind", ["whole", "dangling", "middle"])
def test_a_folder_behind_a_link_is_written_where_it_is(tmp_path, kind):
    disk, target = tmp_path / "disk", tmp_path / "disk" / "real"
    disk.mkdir()
    if kind != "dangling":
        with checkpoint.atomic_folder(target) as folder:
            write(folder)
            (folder / "old").touch()
    link = tmp_path / "out"
    link.symlink_to(disk if kind == "middle" else target, target_is_directory=True)
    place = link / "real" if kind == "middle" else link
    with checkpoint.atomic_folder(place, overwrite=True) as folder:
        assert folder.parent == disk  # on the same disk
        write(folder)
    assert link.is_symlink() and names(disk) == ["real"]
    assert names(place) == names(target) == ["recipe.resolved.yaml"]


def test_a_link_to_what_edgeqat_did_not_write_is_not_replaced(tmp_path):
    (tmp_path / "own").mkdir()
    (tmp_path / "own" / "thesis.tex").touch()
    (tmp_path / "out").symlink_to("own")
    with pytest.raises(OutputError, match="not a folder edgeqat wrote"):
        checkpoint.check_output(tmp_path / "out", overwrite=True)
