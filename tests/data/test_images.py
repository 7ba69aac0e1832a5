"""Images from parquet files and image folders: decoded once, cut to size, augmented in one go."""

import numpy as np
import pytest
import torch
from datasets import Value
from pictures import LABEL, parquet, picture

from edgeqat.data import images as data_images
from edgeqat.data.images import Normalizer, augment, load_images
from edgeqat.errors import DataError


def test_parquet_files_are_read_without_loss(tmp_path, monkeypatch):
    parquet(tmp_path), parquet(tmp_path, "test", count=2)
    images = load_images(str(tmp_path), "train", size=8)
    assert images.pixels.shape == (5, 3, 8, 8) and images.pixels.dtype == torch.uint8
    assert images.labels.tolist() == [0, 1, 2, 0, 1] and images.names == LABEL.names
    expected = np.asarray(picture(3)).transpose(2, 0, 1)
    assert np.array_equal(images.pixels[3].numpy(), expected)
    assert len(load_images(str(tmp_path), "test", size=8)) == 2
    monkeypatch.setattr("edgeqat.data.images._decoded", None)  # the second time from the cache
    again = load_images(str(tmp_path), "train", size=8)
    assert again.fingerprint() == images.fingerprint()


def test_more_images_than_fit_into_memory_stay_in_their_file(tmp_path, monkeypatch):
    expected = load_images(str(parquet(tmp_path / "data")), "train", size=8)
    monkeypatch.setattr("edgeqat.data.images._IN_MEMORY", 0)
    monkeypatch.setattr("edgeqat.data.images._AT_ONCE", 2)
    monkeypatch.setenv("EDGEQAT_CACHE", str(tmp_path / "cache"))
    images = load_images(str(tmp_path / "data"), "train", size=8)
    assert torch.equal(images.pixels, expected.pixels)
    (file,) = (tmp_path / "cache" / "images").iterdir()
    assert np.array_equal(np.load(file), expected.pixels.numpy())
    monkeypatch.setattr("edgeqat.data.images._decoded", None)  # the second time from the file
    again = load_images(str(tmp_path / "data"), "train", size=8)
    assert torch.equal(again.pixels, expected.pixels)
    assert again.fingerprint() == images.fingerprint()
    assert torch.equal(again.__getitems__([3, 0])["pixels"], expected.pixels[[3, 0]])


def test_no_room_for_them_is_said(tmp_path, monkeypatch):
    monkeypatch.setattr("edgeqat.data.images._IN_MEMORY", 0)
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("EDGEQAT_CACHE", str(tmp_path / "file"))
    with pytest.raises(DataError, match=r"cannot be kept in .* set EDGEQAT_CACHE"):
        load_images(str(parquet(tmp_path / "data")), "train", size=8)


def test_images_that_are_not_wanted_are_not_decoded(tmp_path, monkeypatch):
    every, calls = load_images(str(parquet(tmp_path)), "train", size=8), []
    decoded = data_images._decoded
    monkeypatch.setattr(data_images, "_decoded", lambda *a: calls.append(1) or decoded(*a))
    some = load_images(str(tmp_path), "train", size=8, count=3)
    assert torch.equal(some.pixels, every.pixels[[0, 2, 4]]) and len(calls) == 3
    assert some.labels.tolist() == every.labels[[0, 2, 4]].tolist() and some.names == every.names


def test_changed_files_are_decoded_anew(tmp_path):
    before = load_images(str(parquet(tmp_path)), "train", size=8).fingerprint()
    assert load_images(str(parquet(tmp_path, count=6)), "train", size=8).fingerprint() != before


def test_image_folders_name_their_classes(tmp_path):
    for split, label in (("train", "cat"), ("train", "dog"), ("val", "cat"), ("val", "dog")):
        (tmp_path / split / label).mkdir(parents=True)
        picture(1).save(tmp_path / split / label / "one.png")
    images = load_images(str(tmp_path), "test", size=8)
    assert images.names == ["cat", "dog"] and images.labels.tolist() == [0, 1]


def test_the_middle_of_other_sizes_is_cut_out(tmp_path):
    images = load_images(str(parquet(tmp_path, width=16, height=8)), "train", size=8)
    expected = np.asarray(picture(0, 16, 8))[:, 4:12].transpose(2, 0, 1)
    assert np.array_equal(images.pixels[0].numpy(), expected)


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_a_damaged_image_is_named(tmp_path):
    for number in range(2):
        (tmp_path / "train" / "cat").mkdir(parents=True, exist_ok=True)
        picture(number).save(tmp_path / "train" / "cat" / f"{number}.png")
    whole = (tmp_path / "train" / "cat" / "1.png").read_bytes()
    (tmp_path / "train" / "cat" / "1.png").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(DataError, match=r"image 1 of '.*' cannot be decoded"):
        load_images(str(tmp_path), "train", size=8)


def test_a_damaged_image_has_the_number_it_has_in_its_data(tmp_path):
    (tmp_path / "train" / "cat").mkdir(parents=True)
    for number in range(5):
        picture(number).save(tmp_path / "train" / "cat" / f"{number}.png")
    (tmp_path / "train" / "cat" / "2.png").write_bytes(b"nothing")
    with pytest.raises(DataError, match="image 2 of"):
        load_images(str(tmp_path), "train", size=8, count=3)


def test_labels_are_numbers(tmp_path):
    from datasets import Value

    labels = ["cat", "dog", "cat", "dog", "cat"]
    parquet(tmp_path, labels=labels, kind=Value("string"))
    with pytest.raises(DataError, match=r"label: '.*' of .* holds no class numbers"):
        load_images(str(tmp_path), "train", size=8)


def test_a_batch_comes_whole_with_its_indices(tmp_path):
    images = load_images(str(parquet(tmp_path)), "train", size=8)
    batch = images.__getitems__([4, 1])
    assert torch.equal(batch["pixels"], images.pixels[[4, 1]]) and batch["index"].tolist() == [4, 1]
    part = images.subset(torch.tensor([1, 3]))
    assert part.labels.tolist() == [1, 0] and len(part) == 2


def test_normalised_pixels():
    pixels = torch.randint(256, (2, 3, 4, 4), dtype=torch.uint8)
    found = Normalizer((0.5, 0.4, 0.3), (0.2, 0.3, 0.4))(pixels)
    assert torch.allclose(found[:, 1], (pixels[:, 1] / 255 - 0.4) / 0.3, atol=1e-5)


def test_augmentation_shifts_and_flips_every_image_its_own_way():
    torch.manual_seed(0)
    pixels = torch.randint(1, 256, (64, 3, 8, 8), dtype=torch.uint8)
    moved = augment(pixels, padding=2)
    assert moved.shape == pixels.shape and moved.dtype == pixels.dtype
    padded = torch.nn.functional.pad(pixels, (2,) * 4)
    seen = set()
    for image in range(64):
        places = [
            (y, x, flip) for y in range(5) for x in range(5) for flip in (False, True)
            if torch.equal(moved[image], padded[image, :, y : y + 8, x : x + 8].flip(-1) if flip
                           else padded[image, :, y : y + 8, x : x + 8])
        ]  # fmt: skip
        assert len(places) == 1
        seen.add(places[0])
    assert len(seen) > 20 and {flip for *_, flip in seen} == {False, True}


@pytest.mark.parametrize(
    "make, words",
    [
        (lambda folder: folder, "has no train images"),
        (lambda folder: folder / "missing", "is no folder and no dataset"),
        (lambda folder: parquet(folder, kind=Value("int64"), labels=[0, 1, -2, 0, 2]), "label -2"),
        (lambda folder: parquet(folder, count=0), "corresponds to no data"),
    ],
)
def test_what_cannot_be_read_is_said_in_one_line(tmp_path, make, words):
    with pytest.raises(DataError, match=words) as error:
        load_images(str(make(tmp_path)), "train", size=8)
    assert "\n" not in str(error.value)


def test_held_out_images_are_those_with_labels(tmp_path):
    for split, labels in (("train", [0, 1, 2, 0, 1]), ("test", [-1] * 5)):
        parquet(tmp_path, split=split, kind=Value("int64"), labels=labels)
    assert load_images(str(tmp_path), "test", size=8).labels.tolist() == [-1] * 5
    parquet(tmp_path, split="validation", kind=Value("int64"), labels=[2, 2, 1, 0, 0])
    assert load_images(str(tmp_path), "test", size=8).labels.tolist() == [2, 2, 1, 0, 0]


def test_unlabelled_images_are_marked(tmp_path):
    images = load_images(str(parquet(tmp_path, labels=False)), "train", size=8)
    assert images.labels.tolist() == [-1] * 5
