"""Labelled images: Hugging Face layouts (parquet files, image folders, hub names) decoded once to
uint8 and kept beside the other caches; batches are normalised and augmented whole.

Images are brought to one size: the shorter side resized, the middle cut out. Scores and evaluation
read them clean; training shifts and flips each at random. More than 4 GiB of them stay in the
cache's file, which is mapped: ImageNet at 224 pixels takes 193 GB of disk, not of memory.

Legend: N images, S side.
"""

from __future__ import annotations

import hashlib
import math
import os
import warnings
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from edgeqat import cache
from edgeqat.errors import DataError

LABELS = ("fine_label", "label", "labels")
MEAN, DEVIATION = (0.5071, 0.4865, 0.4409), (0.2673, 0.2564, 0.2762)  # CIFAR's
IMAGENET_MEAN, IMAGENET_DEVIATION = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
_HELD_OUT = ("validation", "valid", "val", "test")  # the test images of ImageNet have no labels
_IN_MEMORY = 4 << 30  # bytes of pixels; more stay in their file
_HASHED = 4096  # images of those
_AT_ONCE = 512  # images decoded between two writes
_ON_A_GPU = 100
_PIXELS = 32 * 32 * 32  # of a forward pass: its largest tensor stays below what the heap maps anew


class Images(Dataset):
    """Decoded images (N, 3, S, S) uint8 and labels (N,) int64 (-1: unlabelled), with stable
    indices; __getitems__ gives a whole batch {"pixels", "labels", "index"}.
    """

    unit = "samples"  # of training speed

    def __init__(self, pixels: Tensor, labels: Tensor, names: list[str]) -> None:
        self.pixels, self.labels, self.names = pixels, labels, names

    def __len__(self) -> int:
        return len(self.pixels)

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        return {"pixels": self.pixels[index], "labels": self.labels[index]}

    def __getitems__(self, indices: list[int]) -> dict[str, Tensor]:
        index = torch.tensor(indices)
        return {"pixels": self.pixels[index], "labels": self.labels[index], "index": index}

    def subset(self, index: Tensor) -> Images:
        """The images at `index` (M,), renumbered."""
        return Images(self.pixels[index], self.labels[index], self.names)

    def evenly(self, count: int) -> Images:
        """`count` images evenly spaced over the data (0: all)."""
        if not 0 < count < len(self):
            return self
        return self.subset(_spaced(len(self), count))

    @property
    def at_once(self) -> int:
        """How many of them go through a network at once where no gradients are kept: on a CPU more
        are slower (docs/log/images-and-coresets.md).
        """
        if torch.cuda.is_available():
            return _ON_A_GPU
        return max(4, _PIXELS // self.pixels.shape[-1] ** 2)

    @property
    def labelled(self) -> bool:
        """Whether every image has a label."""
        return bool((self.labels >= 0).all())

    def fingerprint(self) -> str:
        """A hash of pixels (of more than 4 GiB: of some thousand images) and labels."""
        sample = self if self.pixels.numel() <= _IN_MEMORY else self.evenly(_HASHED)
        digest = hashlib.sha256(sample.pixels.flatten().numpy().data)
        digest.update(self.labels.numpy().data)
        return digest.hexdigest()


class Normalizer:
    """uint8 pixels (B, 3, S, S) to float: (x / 255 - mean) / deviation per channel.

    In channels_last order: convolutions keep it, and take half the time on a CPU.
    """

    def __init__(self, mean: tuple[float, ...] = MEAN, deviation: tuple[float, ...] = DEVIATION):
        self.scale = (1 / 255 / torch.tensor(deviation)).view(3, 1, 1)
        self.offset = (-torch.tensor(mean) / torch.tensor(deviation)).view(3, 1, 1)

    def __call__(self, pixels: Tensor) -> Tensor:
        values = pixels.to(torch.float32, memory_format=torch.channels_last)
        return values.mul_(self.scale.to(pixels.device)).add_(self.offset.to(pixels.device))


def augment(
    pixels: Tensor, padding: int | None = None, generator: torch.Generator | None = None
) -> Tensor:
    """Each image of (B, 3, S, S) shifted by up to `padding` (None: S / 8, CIFAR's 4 of 32), zeros
    coming in; half are flipped. `generator` is one of the CPU.
    """
    count, _, height, width = pixels.shape
    padding = width // 8 if padding is None else padding
    padded = torch.nn.functional.pad(pixels, (padding,) * 4)
    down, right = torch.randint(2 * padding + 1, (2, count, 1), generator=generator)
    rows = down + torch.arange(height)
    columns = right + torch.arange(width)
    flipped = torch.rand(count, 1, generator=generator) < 0.5
    columns = torch.where(flipped, columns.flip(1), columns)
    image = torch.arange(count)[:, None, None, None]
    channel = torch.arange(3)[:, None, None]
    places = (image, channel, rows[:, None, :, None], columns[:, None, None, :])
    return padded[tuple(place.to(pixels.device) for place in places)]


def load_images(
    source: str, split: str, size: int = 32, label: str | None = None, count: int = 0
) -> Images:
    """The `train` or `test` images of a folder (parquet files or a folder a class) or a hub name;
    `count` of them evenly spaced over the data (0: all).

    The decoded pixels are kept in EDGEQAT_CACHE (default ~/.cache/edgeqat). Raises DataError in one
    line.
    """
    rows = _rows(source, split)
    image, target = _fields(rows, source, label)
    names = getattr(rows.features[target], "names", None) if target else None
    labels = _labels(rows, target, source) if target else torch.full((len(rows),), -1)
    names = names or [str(number) for number in range(int(labels.max()) + 1)]
    if target and (labels.min() < -1 or labels.max() >= len(names)):
        wrong = int(labels.min() if labels.min() < -1 else labels.max())
        raise DataError(
            f"data: label {wrong} of '{source}' is outside 0..{len(names) - 1}; correct '{target}'"
        )
    numbers = None
    if 0 < count < len(rows):
        numbers = _spaced(len(rows), count).tolist()
        rows, labels = rows.select(numbers), labels[numbers]
    file = _cache_file(source, rows, image, size)
    parts = _decoded_parts(rows, image, size, source, numbers)
    pixels = _pixels(file, (len(rows), 3, size, size), parts)
    with warnings.catch_warnings():  # a map cannot be written to, and nobody does
        warnings.filterwarnings("ignore", "The given NumPy array is not writable")
        return Images(torch.from_numpy(pixels), labels, names)


def _pixels(file: Path, shape: tuple[int, ...], parts: Iterator[np.ndarray]) -> np.ndarray:
    """Pixels (N, 3, S, S) from the cache's file, which is written from `parts` where it is missing;
    a map of the file where they are many.
    """
    is_large = math.prod(shape) > _IN_MEMORY
    stored = _read(file, shape, is_large)
    if stored is not None:
        return stored
    if not is_large:
        pixels = np.concatenate(list(parts))
        cache.keep(file, lambda part: np.save(part, pixels))
        return pixels
    cache.keep(file, lambda part: _write(part, shape, parts))
    stored = _read(file, shape, is_large)
    if stored is None:
        raise DataError(
            f"data: {math.prod(shape) / 1e9:.0f} GB of decoded images cannot be kept in "
            f"'{file.parent}'; set {cache.VARIABLE} to a place with room, or fewer "
            "data.images.train_images"
        )
    return stored


def _write(file: Path, shape: tuple[int, ...], parts: Iterator[np.ndarray]) -> None:
    """An .npy file of `shape`, one part after the other."""
    with open(file, "wb") as into:
        head = {"descr": "|u1", "fortran_order": False, "shape": shape}
        np.lib.format.write_array_header_1_0(into, head)
        for part in parts:
            into.write(part.data)


def _read(file: Path, shape: tuple[int, ...], mapped: bool) -> np.ndarray | None:
    try:
        pixels = np.load(file, mmap_mode="r" if mapped else None, allow_pickle=False)
    except (OSError, ValueError):
        return None
    return pixels if pixels.shape == shape else None


def _decoded_parts(
    rows: Any, image: str, size: int, source: str, numbers: list[int] | None
) -> Iterator[np.ndarray]:
    """Pixels (n, 3, S, S) of some rows after the other, decoded by threads; `numbers` are those of
    the rows in their source (None: counted).
    """
    from datasets import Image

    kind, raw = rows.features[image], rows.select_columns([image])
    raw = raw.cast_column(image, Image(decode=False))

    def decoded(number: int, value: dict[str, Any]) -> np.ndarray:
        try:
            return _decoded(kind.decode_example(value), size)
        except (OSError, ValueError) as error:
            reason = " ".join(str(error).split())[:120]
            row_number = number if numbers is None else numbers[number]
            raise DataError(
                f"data: image {row_number} of '{source}' cannot be decoded ({reason}); replace it"
            ) from None

    with ThreadPoolExecutor(os.cpu_count()) as pool:
        for start in range(0, len(raw), _AT_ONCE):
            values = raw[start : start + _AT_ONCE][image]
            yield np.stack(list(pool.map(decoded, range(start, start + len(values)), values)))


def _spaced(total: int, count: int) -> Tensor:
    """`count` indices evenly spaced over `total`."""
    return torch.linspace(0, total - 1, count).long()


def _labels(rows: Any, column: str, source: str) -> Tensor:
    try:
        return torch.tensor(rows[column], dtype=torch.int64)
    except (TypeError, ValueError):
        raise DataError(
            f"data.images.label: '{column}' of '{source}' holds no class numbers; name another "
            "column"
        ) from None


def _rows(source: str, split: str) -> Any:
    from datasets import get_dataset_split_names, load_dataset

    words = _HELD_OUT if split != "train" else ("train",)
    folder = Path(source).expanduser()
    try:
        if folder.is_dir():
            for word in words:
                files = sorted(str(file) for file in folder.rglob(f"{word}*.parquet"))
                if files:
                    return load_dataset("parquet", data_files=files, split="train")
                if (folder / word).is_dir():
                    return load_dataset("imagefolder", data_dir=str(folder / word), split="train")
            raise DataError(
                f"data: '{source}' has no {words[-1]} images (looked for {words[-1]}*.parquet and "
                f"a folder {words[-1]}/ with a folder a class); name another --data"
            )
        there = get_dataset_split_names(source)
        return load_dataset(source, split=next((w for w in words if w in there), words[-1]))
    except DataError:
        raise
    except Exception as error:
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise DataError(
            f"data: '{source}' is no folder and no dataset that can be loaded here ({reason}); "
            "give --data a folder of parquet files or image folders"
        ) from error


def _fields(rows: Any, source: str, label: str | None) -> tuple[str, str | None]:
    """Names of the image column and the label column (None: unlabelled)."""
    from datasets import Image

    images = [name for name, kind in rows.features.items() if isinstance(kind, Image)]
    if not images or not len(rows):
        raise DataError(
            f"data: '{source}' holds no images (columns: {rows.column_names}); name another --data"
        )
    if label is not None and label not in rows.column_names:
        raise DataError(
            f"data.images.label: '{label}' is no column of '{source}': {rows.column_names}"
        )
    columns = [name for name in LABELS if name in rows.column_names]
    return images[0], label or (columns[0] if columns else None)


def _decoded(image: Any, size: int) -> np.ndarray:
    """A PIL image as (3, size, size) uint8: the shorter side resized, the middle cut out."""
    image = image.convert("RGB")
    if image.size != (size, size):
        ratio = size / min(image.size)
        image = image.resize([max(size, round(side * ratio)) for side in image.size])
        left, top = (image.width - size) // 2, (image.height - size) // 2
        image = image.crop((left, top, left + size, top + size))
    return np.ascontiguousarray(np.asarray(image, dtype=np.uint8).transpose(2, 0, 1))


def _cache_file(source: str, rows: Any, image: str, size: int) -> Path:
    """Where the decoded pixels of exactly these rows are kept."""
    files = [file["filename"] for file in rows.cache_files]
    parts = [source, image, size, len(rows), rows._fingerprint, *files]
    for file in sorted(Path(source).rglob("*.parquet")) if Path(source).is_dir() else []:
        parts += [file.name, file.stat().st_size, file.stat().st_mtime_ns]
    name = hashlib.sha256(repr(parts).encode()).hexdigest()
    return cache.folder("images") / f"{name}.npy"
