"""Classes by name: the label of an image is the class of the model with the same name, wherever the
name stands among those of the data.

A folder of some of the model's classes, and parquet files that number them in another order, are
labelled as the model was trained. Upper and lower case, blanks, hyphens and underscores make no
difference, and of `tench, Tinca tinca` each part is a name. Data without names, or named 0, 1, 2,
..., hold the model's class numbers.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Sequence

import torch

from edgeqat.data.images import Images
from edgeqat.errors import DataError, nearest

_BETWEEN = re.compile(r"[\s_-]+")
_MISSPELT = {"cra": "crab"}  # CIFAR-100 on the hub


def unnamed(count: int) -> tuple[str, ...]:
    """The names of classes that have none: their numbers."""
    return tuple(str(number) for number in range(count))


def are_named(names: Sequence[str]) -> bool:
    """Whether names say more than their place; LABEL_0, LABEL_1, ... and 0, 1, ... do not."""
    return any(name not in (str(n), f"LABEL_{n}") for n, name in enumerate(names))


def model_names(names: Sequence[str], classes: int, images: Images, place: str) -> tuple[str, ...]:
    """The names of a model's classes: those in `names`, else those of the images of `place`; () of
    neither. Raises DataError for images with names of more or fewer classes than a model without.
    """
    if are_named(names):
        return tuple(names)
    if not are_named(images.names):
        return ()
    if set(images.names) <= set(unnamed(classes)):
        return unnamed(classes)
    if len(images.names) != classes:
        raise DataError(
            f"data: '{place}' names {len(images.names)} classes and the model has {classes} "
            "without names; give data with all of its classes"
        )
    return tuple(images.names)


def labelled_as(images: Images, names: Sequence[str], place: str) -> Images:
    """The images of `place` with the labels of a model whose classes are called `names` (empty: as
    they are). Raises DataError for a name that the model does not have.
    """
    if not names or not are_named(images.names) or _all_same(images.names, names):
        return images
    wholes, parts = _places(names)
    used = images.labels[images.labels >= 0].unique().tolist()
    table = torch.zeros(len(images.names), dtype=torch.int64)
    missing = []
    for label in used:
        name = images.names[label]
        matches = wholes[_plain(name)] or set.union(*(parts[part] for part in _synonyms(name)))
        if len(matches) > 1:
            raise DataError(
                f"data: '{name}' in '{place}' is the name of the model's classes "
                f"{' and '.join(map(str, sorted(matches)))}; write the whole name of one"
            )
        missing += [] if matches else [name]
        table[label] = min(matches, default=0)
    if missing:
        raise DataError(
            f"data: '{missing[0]}' in '{place}' is no class of the model ({len(missing)} of "
            f"{len(used)} names are none); rename them like the model's "
            f"({nearest(missing[0], list(names))})"
        )
    labels = torch.where(images.labels < 0, images.labels, table[images.labels.clamp(min=0)])
    return Images(images.pixels, labels, list(names))


def first_difference(names: Sequence[str], others: Sequence[str]) -> int | None:
    """The first class that two models call by other names; None where all are the same."""
    for number, (one, other) in enumerate(zip(names, others, strict=False)):
        if not {_plain(one), *_synonyms(one)} & {_plain(other), *_synonyms(other)}:
            return number
    return None


def _places(names: Sequence[str]) -> tuple[dict[str, set[int]], dict[str, set[int]]]:
    """Which classes have a whole name, and which have it as one of several."""
    wholes, parts = defaultdict(set), defaultdict(set)
    for number, name in enumerate(names):
        wholes[_plain(name)].add(number)
        for part in _synonyms(name):
            parts[part].add(number)
    return wholes, parts


def _all_same(names: Sequence[str], others: Sequence[str]) -> bool:
    """Whether two lists are the same, also where a name stands in them twice."""
    return [_plain(name) for name in names] == [_plain(name) for name in others]


def _synonyms(name: str) -> list[str]:
    return [_plain(part) for part in name.split(",")]


def _plain(name: str) -> str:
    words = " ".join(_BETWEEN.split(name.strip().casefold()))
    return _MISSPELT.get(words, words)
