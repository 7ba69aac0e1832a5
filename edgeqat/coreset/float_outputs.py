"""The float model's outputs on all samples: computed once, kept in EDGEQAT_CACHE, keyed by model
and data.

Log-probabilities of all classes (float32, exact) up to 1,000 of them or 1 GiB in all, of the k most
probable ones above (float16 and their class numbers): 16 of 8,192 hold 62% of the mass and give
another score, 256 are enough. They never change in a run, so a selection costs one forward pass
of the student alone, and a student may train without a teacher in memory (distill.kept).

They are read where they lie on the disk, and written as they are computed: neither takes memory.

Legend: N samples, T tokens, C classes, K kept classes.
"""

from __future__ import annotations

import hashlib
import logging
import math
import os
import shutil
import time
from collections.abc import Iterator
from itertools import chain
from pathlib import Path
from typing import BinaryIO, Literal, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from edgeqat import cache
from edgeqat.coreset.samples import Samples
from edgeqat.errors import StorageError
from edgeqat.nn.folding import inference
from edgeqat.train import processes

logger = logging.getLogger(__name__)

EXACT_CLASSES = 1000
EXACT_BYTES = 1 << 30
KEPT_CLASSES = 256
_KIND = "outputs"
_KEPT_BYTES = 6  # of a kept class: float16 and int32

_Part = tuple[Tensor, Tensor | None]  # log-probabilities, class numbers


class _Array(NamedTuple):
    """Where the values of an array lie in a file."""

    dtype: np.dtype
    shape: tuple[int, ...]
    start: int


class FloatOutputs(NamedTuple):
    """Log-probabilities (N, [T,] C) or (N, [T,] K), and for the latter the classes' numbers."""

    log_probabilities: Tensor
    numbers: Tensor | None
    seconds: float  # spent on computing them; 0: they were known

    def of(self, samples: Tensor, device: torch.device) -> tuple[Tensor, Tensor | None]:
        """Those of some samples."""
        log_probabilities = self.log_probabilities[samples].to(device).float()
        numbers = None if self.numbers is None else self.numbers[samples].to(device).long()
        return log_probabilities, numbers


def float_outputs(
    model: nn.Module, samples: Samples, key: str, kept: int | None, on_disk: bool = False
) -> FloatOutputs:
    """The outputs of a float model; `key` is the fingerprint of its weights, `kept` the number of
    classes (None: all where they fit). With `on_disk` they are refused where they find no place
    there; else they are held in memory then.
    """
    file = _file(samples, key, kept)
    start = time.perf_counter()
    outputs = _read(file, len(samples))
    if not _somewhere_missing(outputs):
        assert outputs is not None
        return FloatOutputs(*outputs, 0.0)
    _keep(file, _parts(model, samples, kept), len(samples))
    outputs = _read(file, len(samples))
    if _somewhere_missing(outputs):  # no place to keep them
        if on_disk:
            raise StorageError(
                f"distill.kept: the teacher's outputs cannot be kept in '{file.parent}'; set "
                f"{cache.VARIABLE} to a folder with room, or leave distill.kept out"
            )
        parts = list(_parts(model, samples, kept))
        probabilities, numbers = zip(*parts, strict=True)
        outputs = torch.cat(probabilities), None if numbers[0] is None else torch.cat(numbers)
    assert outputs is not None
    seconds = time.perf_counter() - start
    logger.info("float outputs of %d samples computed in %.0f s", len(samples), seconds)
    return FloatOutputs(*outputs, seconds)


def check_room(samples: Samples, key: str, kept: int, tokens: int, vocabulary: int) -> None:
    """Refuse to keep outputs of `tokens` tokens a sample, each one of `vocabulary`, on a disk that
    has no room for them.
    """
    file = _file(samples, key, kept)
    exact = vocabulary <= EXACT_CLASSES
    of_token = 4 * vocabulary if exact else _KEPT_BYTES * min(kept, vocabulary)
    needed = len(samples) * tokens * of_token
    room = shutil.disk_usage(next(place for place in file.parents if place.exists())).free
    if needed > room and not file.exists():
        raise StorageError(
            f"distill.kept: the teacher's outputs take {needed / 1e9:.2f} GB in "
            f"'{cache.folder(_KIND)}', which has {room / 1e9:.2f} GB left; lower distill.kept, or "
            f"set {cache.VARIABLE} to a folder on another disk"
        )


def _file(samples: Samples, key: str, kept: int | None) -> Path:
    digest = hashlib.sha256(f"{key} {samples.fingerprint()} {kept}".encode()).hexdigest()
    return cache.folder(_KIND) / f"{digest}.npy"


def _somewhere_missing(outputs: _Part | None) -> bool:
    """Outputs are computed by all processes or by none."""
    missing = processes.gathered(torch.tensor([float(outputs is None)]), processes.count())
    return bool(missing.any())


def _parts(model: nn.Module, samples: Samples, kept: int | None) -> Iterator[_Part]:
    """Outputs, a few samples at a time; every process gives all of them."""
    at_once = samples.at_once * processes.count()
    with inference(model) as ready:
        for start in range(0, len(samples), at_once):
            count = min(at_once, len(samples) - start)
            index = start + processes.shard(count)
            log_p = samples.logits(ready, index).float().log_softmax(-1)
            size = log_p[0].numel() * log_p.element_size() * len(samples)
            classes = None
            if log_p.shape[-1] > EXACT_CLASSES and (kept or size > EXACT_BYTES):
                log_p, found = log_p.topk(min(kept or KEPT_CLASSES, log_p.shape[-1]), dim=-1)
                log_p, classes = log_p.half(), processes.gathered(found.int(), count)
            yield processes.gathered(log_p, count), classes


def _keep(file: Path, parts: Iterator[_Part], count: int) -> None:
    """Write parts of `count` samples as one array of log-probabilities, and behind it one of class
    numbers.
    """

    def write(place: Path) -> None:
        first = next(parts)
        with open(place, "wb") as stream:
            arrays = [
                _empty(stream, part.numpy().dtype, (count, *part.shape[1:]))
                for part in first
                if part is not None
            ]
        done = 0
        for part in chain([first], parts):
            values = [value for value in part if value is not None]
            for array, value in zip(arrays, values, strict=True):
                _mapped(place, array, "r+")[done : done + len(value)] = value.numpy()
            done += len(part[0])
        with open(place, "rb") as stream:
            os.fsync(stream.fileno())  # its size alone does not tell that its values are there

    if processes.is_first():
        cache.keep(file, write)
    for _ in parts:  # the other processes take part, and the first one where the disk is full
        pass
    processes.wait()


def _empty(stream: BinaryIO, dtype: np.dtype, shape: tuple[int, ...]) -> _Array:
    """Write the header of a .npy array at the end of a file, and room for its values: a disk that
    is full says so here, and not while values are written into a map.
    """
    header = {"descr": np.lib.format.dtype_to_descr(dtype), "fortran_order": False, "shape": shape}
    np.lib.format.write_array_header_1_0(stream, header)
    start, size = stream.tell(), math.prod(shape) * dtype.itemsize
    stream.flush()
    if hasattr(os, "posix_fallocate") and size:
        os.posix_fallocate(stream.fileno(), start, size)
    else:
        stream.truncate(start + size)
    stream.seek(0, os.SEEK_END)
    return _Array(dtype, shape, start)


def _mapped(file: Path, array: _Array, mode: Literal["r+", "c"]) -> np.memmap:
    return np.memmap(file, array.dtype, mode, array.start, array.shape)


def _read(file: Path, count: int) -> _Part | None:
    """What a file holds of so many samples, where it lies; None without."""
    arrays = []
    try:
        with open(file, "rb") as stream:
            size = os.fstat(stream.fileno()).st_size
            while stream.tell() < size:
                if np.lib.format.read_magic(stream) != (1, 0):
                    return None
                shape, _, dtype = np.lib.format.read_array_header_1_0(stream)
                array = _Array(dtype, shape, stream.tell())
                arrays.append(_mapped(file, array, "c"))  # private: torch wants to write
                stream.seek(math.prod(shape) * dtype.itemsize, os.SEEK_CUR)
    except (OSError, ValueError, EOFError):
        return None
    if not 1 <= len(arrays) <= 2 or len(arrays[0]) != count:
        return None
    first, *second = (torch.from_numpy(array) for array in arrays)
    return first, second[0] if second else None
