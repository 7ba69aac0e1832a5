"""What one row computes, in a process of its own: a quantized model, its size, and its scores.

    seconds, peak_bytes   of quantizing: from the loaded float model to the written result
    bytes, bits, ...      compare/sizes
    perplexity, kl, ...   compare/scores

What rows share is computed by jobs of their own before: the float logits, the F16 file of llama.cpp
and its importance matrix.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from edgeqat.bench.sequence import process_peak
from edgeqat.compare import auto_round, importance, llama_cpp, torchao
from edgeqat.compare.inputs import Inputs
from edgeqat.compare.rows import FLOAT, KINDS, TRAINED
from edgeqat.compare.scores import Scores, scored, write_reference
from edgeqat.compare.sizes import Counts
from edgeqat.export import gguf
from edgeqat.export.float_weights import FloatWeights
from edgeqat.hf import float_model, packed_folder
from edgeqat.nn import convert
from edgeqat.output import write_json
from edgeqat.pipeline.preparation import prepared
from edgeqat.pipeline.quantize import quantize
from edgeqat.pipeline.widths import with_widths

REFERENCE, F16, IMPORTANCE = "reference.npy", "F16.gguf", "importance"
_SECONDS = "seconds.json"
_PEERS = {"auto-round": auto_round.quantize, "torchao": torchao.quantize}


@dataclass(frozen=True)
class Job:
    """A row, or one of the shared parts, to compute in the folder `place`. steps: of the training
    of a row of ours; folder: a packed one that is there; counts: of the float model.
    """

    name: str
    place: str
    threads: int
    counts: Counts
    scheme: str = ""
    folder: str | None = None
    steps: int = 0

    @classmethod
    def from_json(cls, values: dict[str, Any]) -> Job:
        counts = values["counts"]
        counts["matrices"] = tuple(counts["matrices"])
        return cls(**{**values, "counts": Counts(**counts)})


def compute(job: Job) -> dict[str, Any]:
    """The result of a job."""
    torch.set_num_threads(job.threads)
    inputs = Inputs(Path(job.place))
    if job.name in _SHARED:
        return _SHARED[job.name](inputs)
    if job.name == FLOAT:
        return _float(job, inputs)
    family = KINDS[job.name].family
    if family == "llama.cpp":
        return _llama_cpp(job, inputs)
    return _ours(job, inputs) if family == "ours" else _torch_peer(job, inputs)


def _float(job: Job, inputs: Inputs) -> dict[str, Any]:
    recipe = inputs.recipe().model
    model = float_model.load_model(recipe.name, recipe.weights)
    scores = write_reference(inputs.place / REFERENCE, model, inputs.held_out())
    return {**job.counts.of_float(), **scores}


def _ours(job: Job, inputs: Inputs) -> dict[str, Any]:
    made: dict[str, Any] = {}
    average = inputs.recipe(job.scheme).quant.average_bits if job.folder is None else None
    if average is not None:
        made["format"] = f"{job.scheme}, {average:g} bits a weight"
    if job.folder is not None:
        folder = Path(job.folder)
    elif job.name == TRAINED:
        folder = inputs.place / f"{TRAINED}-{job.scheme}"
        recipe = inputs.recipe(job.scheme)
        train = recipe.train.model_copy(update={"steps": job.steps, "epochs": None})
        with _measured(made):
            quantize(recipe.model_copy(update={"train": train}), folder, overwrite=True)
    else:
        task, recipe = inputs.task(), inputs.recipe(job.scheme)
        recipe = with_widths(recipe, task)
        quant = recipe.quant if job.name == "ours-start" else recipe.quant.ptq_only()
        folder = inputs.place / f".{job.name}-{job.scheme}"
        folder.mkdir()
        with _measured(made):
            model = prepared(task, recipe, quant)
            convert.convert(model)
            task.write(folder, model, quant)
        del task, model
    size = job.counts.of_folder(folder)
    packed = packed_folder.load(folder)
    return {**made, **size, **scored(packed, inputs.held_out(), inputs.place / REFERENCE)}


def _torch_peer(job: Job, inputs: Inputs) -> dict[str, Any]:
    """A library that quantizes the float model of torch: its module writes a folder, whose size
    counts, and returns the model to score, or the dequantized weights of its linear layers.
    """
    kind, made = KINDS[job.name], dict[str, Any]()
    task, recipe = inputs.task(), inputs.recipe()
    blocks = torch.cat(list(task.calibration(recipe)))
    task.release()
    model = float_model.load_model(recipe.model.name, recipe.model.weights).eval()
    folder = inputs.place / f".{job.name}"
    folder.mkdir()
    with _measured(made):
        quantized: Any = _PEERS[kind.family](model, task.tokenizer, blocks, kind.group, folder)
    if isinstance(quantized, dict):  # the library's own layers are slow, or do not run, on CPUs
        plain = float_model.load_model(recipe.model.name, recipe.model.weights)
        quantized = _with_weights(plain, quantized)
    size = job.counts.of_folder(folder, halved=True)
    return {**made, **size, **scored(quantized, inputs.held_out(), inputs.place / REFERENCE)}


def _with_weights(model: Any, weights: dict[str, torch.Tensor]) -> Any:
    """A float model with other weights in linear layers of these names."""
    with torch.no_grad():
        for name, weight in weights.items():
            model.get_submodule(name).weight.copy_(weight)
    return model


def _llama_cpp(job: Job, inputs: Inputs) -> dict[str, Any]:
    kind = KINDS[job.name]
    file, made = inputs.place / F16, dict[str, Any]()
    if kind.file != "F16":
        file, made = _quantized(job, inputs)
    scores, ids = Scores(inputs.place / REFERENCE), inputs.held_out()
    with llama_cpp.opened(file, ids.shape[1], kind.cache, job.threads) as logits:
        for row in ids:
            scores.add(row, logits(row))
    return {**made, **job.counts.of_gguf(file), **scores.result()}


def quantized_file(place: Path, name: str) -> Path:
    """The file that a row of llama.cpp is computed from; rows with different caches share it."""
    kind = KINDS[name]
    return place / f"{kind.file}{'-imatrix' if kind.importance else ''}.gguf"


def _quantized(job: Job, inputs: Inputs) -> tuple[Path, dict[str, Any]]:
    """The file of a row of llama.cpp, and what making it took."""
    kind, file = KINDS[job.name], quantized_file(inputs.place, job.name)
    note = file.with_suffix(".json")
    if not (file.is_file() and note.is_file()):
        made: dict[str, Any] = {}
        matrix = None
        if kind.importance:
            matrix = importance.read(inputs.place / f"{IMPORTANCE}.safetensors")
        with _measured(made):
            llama_cpp.quantize(inputs.place / F16, file, kind.file, matrix, job.threads)
        if kind.importance:
            shared = json.loads((inputs.place / _SECONDS).read_text(encoding="utf-8"))
            made["seconds"] += shared["seconds"]
            made["peak_bytes"] = max(made["peak_bytes"], shared["peak_bytes"])
        write_json(note, made)
    return file, json.loads(note.read_text(encoding="utf-8"))


def _write_f16(inputs: Inputs) -> dict[str, Any]:
    recipe = inputs.recipe().model
    model = float_model.load_model(recipe.name, recipe.weights)
    gguf.write_float(inputs.place / F16, FloatWeights.of_model(model))
    return {}


def _write_importance(inputs: Inputs) -> dict[str, Any]:
    task, recipe, made = inputs.task(), inputs.recipe(), dict[str, Any]()
    batches = list(task.calibration(recipe))
    with _measured(made):
        matrix = importance.importance(task.model, batches)
    importance.write(inputs.place / f"{IMPORTANCE}.safetensors", matrix)
    write_json(inputs.place / _SECONDS, made)
    return made


_SHARED: dict[str, Callable[[Inputs], dict[str, Any]]] = {
    F16: _write_f16,
    IMPORTANCE: _write_importance,
}


@contextmanager
def _measured(made: dict[str, Any]) -> Iterator[None]:
    """Add the seconds of the block to a result, and what the process has held at most."""
    start = time.perf_counter()
    yield
    made["seconds"] = time.perf_counter() - start
    made["peak_bytes"] = process_peak()
