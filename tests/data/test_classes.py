"""Labels follow the names of the model's classes, not the order of the data's."""

from __future__ import annotations

import pytest
import torch

from edgeqat.data.cifar import NAMES
from edgeqat.data.classes import first_difference, labelled_as, model_names
from edgeqat.data.images import Images
from edgeqat.errors import DataError
from edgeqat.vision.zoo import CLASSES

FISH = ["tench, Tinca tinca", "great white shark, white shark, man-eater", "crane", "crane"]


def images(names, labels=None):
    labels = list(range(len(names))) if labels is None else labels
    pixels = torch.arange(12 * len(labels), dtype=torch.uint8).reshape(-1, 3, 2, 2)
    return Images(pixels, torch.tensor(labels), names)


def labels(names, known, given=None):
    found = labelled_as(images(names, given), known, "data")
    assert found.names == list(known) or found.names == names
    return found.labels.tolist()


@pytest.mark.parametrize(
    ("names", "expected"),
    [
        (["dog", "owl"], [1, 2]),
        (["owl", "cat", "dog"], [2, 0, 1]),
        (["Owl", " CAT "], [2, 0]),
        (["cat", "dog", "owl"], [0, 1, 2]),
    ],
)
def test_labels_are_those_of_the_model_with_the_name(names, expected):
    assert labels(names, ["cat", "dog", "owl"]) == expected


def test_blanks_hyphens_and_underscores_are_equal():
    assert labels(["Sweet-Pepper", "lawn mower"], NAMES["cifar100"]) == [83, 41]
    assert labels(["cra"], NAMES["cifar100"]) == [NAMES["cifar100"].index("crab")]


def test_every_part_of_a_name_is_one():
    assert labels(["White Shark", "tinca tinca"], FISH) == [1, 0]
    assert labels(["white shark, great white shark"], FISH) == [1]


def test_a_name_of_two_classes_is_refused_unless_the_lists_are_the_same():
    with pytest.raises(
        DataError, match="'crane' in 'data' is the name of the model's classes 2 and 3"
    ):
        labels(["crane"], FISH)
    assert labels([name.upper() for name in FISH], FISH) == [0, 1, 2, 3]


def test_unlabelled_images_stay_unlabelled():
    assert labels(["owl", "cat"], ["cat", "dog", "owl"], [-1, 0, 1, -1]) == [-1, 2, 0, -1]
    assert labels([], ["cat", "dog"], [-1, -1]) == [-1, -1]


def test_names_without_images_are_not_asked_for():
    assert labels(["unicorn", "owl", "cat"], ["cat", "dog", "owl"], [1, 2]) == [2, 0]


def test_numbers_are_class_numbers():
    assert labels(["0", "1", "2"], ["cat", "dog", "owl"], [2, 0]) == [2, 0]
    assert labels(["LABEL_0", "LABEL_1"], ["cat", "dog", "owl"]) == [0, 1]
    known = model_names((), 10, images(["3", "7"]), "data")
    assert labels(["3", "7"], known) == [3, 7]


def test_names_that_the_model_lacks_are_refused_in_one_line():
    with pytest.raises(DataError) as caught:
        labels(["zebra", "cat", "dgo"], ["cat", "dog", "owl"])
    told = str(caught.value)
    assert "'zebra' in 'data' is no class of the model (2 of 3 names" in told and "\n" not in told
    assert "known: cat, dog, owl" in told
    with pytest.raises(DataError, match="did you mean 'sweet_pepper'"):
        labels(["sweet peper"], NAMES["cifar100"])


def test_a_model_without_names_takes_those_of_as_many_classes():
    for known in ((), ("0", "1", "2"), ("LABEL_0", "LABEL_1", "LABEL_2")):
        assert model_names(known, 3, images(["cat", "dog", "owl"]), "data") == ("cat", "dog", "owl")
        with pytest.raises(DataError, match="'data' names 2 classes and the model has 3 without"):
            model_names(known, 3, images(["dog", "owl"]), "data")
    assert model_names(("a", "b", "c"), 3, images(["dog"]), "data") == ("a", "b", "c")
    assert model_names((), 3, images(["0", "1"]), "data") == ()


def test_data_in_the_order_of_the_model_keep_their_fingerprint():
    own = images(["cat", "dog", "owl"], [0, 2, 1])
    assert labelled_as(own, ["Cat", "dog", "owl"], "data").fingerprint() == own.fingerprint()


def test_names_of_the_data_sets_are_whole():
    for name, known in NAMES.items():
        assert len(set(known)) == CLASSES[name] and list(known) == sorted(known)


def test_models_that_name_a_class_otherwise_differ():
    assert first_difference(FISH, ["Tench", "white_shark", "crane", "crane"]) is None
    assert first_difference(["cat", "dog"], ["cat", "owl"]) == 1
