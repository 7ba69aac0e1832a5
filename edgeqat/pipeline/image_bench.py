"""`edgeqat bench` of image classifiers: the packed folder in torch, and its ONNX graphs, quantized
and in float, under onnxruntime, in turns.

A row: {"engine", "model", "scheme", "test": "b1" | "b64" (images at once), "images_per_second":
{"mean", "sd"}, "milliseconds" of a batch, "threads", "file_bytes"}. The float graph is the same
network with the dequantized weights.
"""

from __future__ import annotations

import logging
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch

from edgeqat import checkpoint, native
from edgeqat.errors import EdgeQATError, UsageError
from edgeqat.evaluate import onnx_runtime
from edgeqat.export import onnx
from edgeqat.hf import image_folder, image_source
from edgeqat.nn import convert
from edgeqat.pipeline.bench import cpu_name

logger = logging.getLogger(__name__)

ENGINES = ("onnxruntime", "onnxruntime-float", "torch")
BATCHES = (1, 64)
_SECONDS = 0.3  # of a measurement


def run(
    folder: Path, engines: tuple[str, ...] = (), threads: int | None = None, repeat: int = 5
) -> list[dict[str, Any]]:
    """Rows of every batch size and engine (none named: all that are installed and fit)."""
    config = checkpoint.verify(folder)
    kind = image_source.from_config(config)
    unknown = [name for name in engines if name not in ENGINES]
    if unknown:
        raise UsageError(f"engine: '{unknown[0]}' is unknown; choose from {', '.join(ENGINES)}")
    counted = threads or native.physical_cores()
    scheme = config["quantization_config"]["scheme"]
    inputs = {size: torch.randn(size, 3, kind.size, kind.size) for size in BATCHES}
    with TemporaryDirectory(prefix="edgeqat-") as place:
        opened: dict[str, tuple[Callable[[torch.Tensor], Any], int]] = {}
        for name in engines or ENGINES:
            try:
                opened[name] = _open(name, folder, config, Path(place), counted)
            except EdgeQATError as error:
                if engines:
                    raise
                logger.warning("engine: '%s' is left out (%s)", name, error)
        speeds: dict[tuple[int, str], list[float]] = {}
        for _ in range(repeat + 1):  # the first warms up
            for size in BATCHES:
                for name, (classify, _bytes) in opened.items():
                    speed = _images_per_second(classify, inputs[size])
                    speeds.setdefault((size, name), []).append(speed)
    rows = []
    for (size, name), found in speeds.items():
        mean = statistics.mean(found[1:])
        rows.append({
            "engine": name,
            "model": folder.name,
            "scheme": "float32" if name == ENGINES[1] else scheme,
            "test": f"b{size}",
            "images_per_second": {
                "mean": mean, "sd": statistics.stdev(found[1:]) if repeat > 1 else 0.0
            },
            "milliseconds": 1000 * size / mean,
            "threads": counted,
            "cpu": cpu_name(),
            "file_bytes": opened[name][1],
        })  # fmt: skip
    return rows


def _open(
    name: str, folder: Path, config: dict[str, Any], place: Path, threads: int
) -> tuple[Callable[[torch.Tensor], Any], int]:
    """What classifies a batch, and the bytes of its file."""
    model = image_folder.load(folder, config)
    if name == "torch":
        torch.set_num_threads(threads)
        size = (folder / checkpoint.WEIGHTS).stat().st_size
        return torch.inference_mode()(model), size
    onnx.check_installed()
    onnx_runtime.check_installed()
    if name == ENGINES[1]:
        convert.restore(model)
    file = place / f"{name}.onnx"
    onnx.export(model, image_source.from_config(config).size, file, {})
    return onnx_runtime.OnnxClassifier(file, threads), file.stat().st_size


def _images_per_second(classify: Callable[[torch.Tensor], Any], images: torch.Tensor) -> float:
    done, start = 0, time.perf_counter()
    while time.perf_counter() - start < _SECONDS or not done:
        classify(images)
        done += len(images)
    return done / (time.perf_counter() - start)
