"""`edgeqat bench` of image classifiers: the packed folder in torch, and its ONNX graphs, quantized
and in float, under onnxruntime, in turns.

A row: {"engine", "model", "scheme", "test": "b1" | "b64" (images at once), "images_per_second":
{"mean", "sd"}, "milliseconds" of a batch, "threads", "file_bytes"}; of an engine that failed
"error" in the place of speeds. The quantized graph is the one of `--requantize`, which runs in
integers; the float graph is the same network with the dequantized weights.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch

from edgeqat import checkpoint, native
from edgeqat.bench import latency, onnx_runtime
from edgeqat.bench.text import cpu_name
from edgeqat.errors import UsageError
from edgeqat.export import onnx
from edgeqat.hf import image_folder, image_model
from edgeqat.nn import convert

logger = logging.getLogger(__name__)

ENGINES = ("onnxruntime", "onnxruntime-float", "torch")
BATCHES = (1, 64)
_SECONDS = 0.3  # of a measurement


def run(
    folder: Path, engines: tuple[str, ...] = (), threads: int | None = None, repeat: int = 5
) -> list[dict[str, Any]]:
    """Rows of every batch size and engine (none named: all that are installed and fit)."""
    config = checkpoint.verify(folder)
    kind = image_model.from_config(config)
    names = _fitting(engines)
    counted = threads or native.physical_cores()
    scheme = config["quantization_config"]["scheme"]
    inputs = {size: torch.randn(size, 3, kind.size, kind.size) for size in BATCHES}
    errors: dict[str, str] = {}
    opened: dict[str, tuple[Callable[[torch.Tensor], Any], int]] = {}
    speeds: dict[tuple[str, int], list[float]] = {}
    with TemporaryDirectory(prefix="edgeqat-") as place:
        for name in names:
            with _told(name, errors):
                opened[name] = _open(name, folder, config, Path(place), counted)
        for _ in range(repeat + 1):  # the first warms up
            for size in BATCHES:
                for name in (name for name in opened if name not in errors):
                    with _told(name, errors):
                        speed = _images_per_second(opened[name][0], inputs[size])
                        speeds.setdefault((name, size), []).append(speed)
    rows = []
    for size in BATCHES:
        for name in names:
            row: dict[str, Any] = {
                "engine": name,
                "model": folder.name,
                "scheme": "float32" if name == ENGINES[1] else scheme,
                "test": f"b{size}",
                "threads": counted,
                "cpu": cpu_name(),
            }
            if name in errors:
                rows.append({**row, "error": errors[name]})
                continue
            rate = latency.mean_and_sd(speeds[name, size][1:])
            row["images_per_second"] = rate
            row["milliseconds"] = 1000 * size / rate["mean"]
            row["file_bytes"] = opened[name][1]
            rows.append(row)
    return rows


def _fitting(engines: tuple[str, ...]) -> list[str]:
    """Engines whose packages are installed; another one is an error only where it was named."""
    unknown = [name for name in engines if name not in ENGINES]
    if unknown:
        raise UsageError(f"engine: '{unknown[0]}' is unknown; choose from {', '.join(ENGINES)}")
    fitting = []
    for name in dict.fromkeys(engines or ENGINES):
        try:
            if name != "torch":
                onnx.check_installed()
                onnx_runtime.check_installed()
            fitting.append(name)
        except UsageError as error:
            if engines:
                raise
            logger.warning("engine: '%s' is left out (%s)", name, error)
    return fitting


@contextmanager
def _told(name: str, errors: dict[str, str]) -> Iterator[None]:
    """What an engine raises goes into `errors`: it costs its own rows only."""
    try:
        yield
    except Exception as error:
        errors[name] = " ".join(str(error).split())[:300] or type(error).__name__


def _open(
    name: str, folder: Path, config: dict[str, Any], place: Path, threads: int
) -> tuple[Callable[[torch.Tensor], Any], int]:
    """What classifies a batch, and the bytes of its file."""
    model = image_folder.load(folder, config)
    if name == "torch":
        torch.set_num_threads(threads)
        size = (folder / checkpoint.WEIGHTS).stat().st_size
        return torch.inference_mode()(model), size
    if name == ENGINES[1]:
        convert.restore(model)
    file = place / f"{name}.onnx"
    onnx.export(model, image_model.from_config(config).size, file, {}, requantize=True)
    return onnx_runtime.OnnxClassifier(file, threads), file.stat().st_size


def _images_per_second(classify: Callable[[torch.Tensor], Any], images: torch.Tensor) -> float:
    done, start = 0, time.perf_counter()
    while time.perf_counter() - start < _SECONDS or not done:
        classify(images)
        done += len(images)
    return done / (time.perf_counter() - start)
