"""Random labelled images as parquet files: what the tests of classifiers read."""

from __future__ import annotations

import numpy as np
from datasets import ClassLabel, Dataset, Features, Image
from PIL import Image as Picture

LABEL = ClassLabel(names=["cat", "dog", "owl"])


def picture(seed, width=8, height=8):
    pixels = np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)
    return Picture.fromarray(pixels)


def parquet(folder, split="train", count=5, labels=None, kind=LABEL, name="fine_label", **shape):
    columns = {"img": [picture(seed, **shape) for seed in range(count)]}
    features = {"img": Image()}
    if labels is not False:
        columns[name] = labels or [index % 3 for index in range(count)]
        features[name] = kind
    rows = Dataset.from_dict(columns, features=Features(features))
    rows.to_parquet(folder / f"{split}-00000-of-00001.parquet")
    return folder
