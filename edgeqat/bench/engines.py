"""The engines that `edgeqat bench` compares: ours, its fp16 mode, torch, and installed peers.

Peers run the same sizes with random weights, at the flags that are fastest for them.
"""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from edgeqat import native
from edgeqat.bench.choice import choose
from edgeqat.bench.sequence import Steps
from edgeqat.runtime.shape import Shape

LLAMA_BENCH = "llama-bench"


@dataclass(frozen=True)
class Kind:
    """What an engine computes with. bytes: of one weight with its share of a scale; file: the type
    of GGUF file it reads; kv: type of its cache; group: inputs of every matrix are a multiple.
    """

    scheme: str
    family: str
    bytes: float = 0.0
    file: str | None = None
    kv: str = ""
    group: int = 1


KINDS = {
    "native": Kind("", "native"),
    "native-fp16": Kind("w16a16kv16", "native"),
    "torch-bf16": Kind("bf16", "torch", 2),
    "llama.cpp-q4_0": Kind("Q4_0, KV f16", "llama.cpp", 18 / 32, "Q4_0", "f16", 32),
    "llama.cpp-q4_0-kv4": Kind("Q4_0, KV q4_0", "llama.cpp", 18 / 32, "Q4_0", "q4_0", 32),
    "llama.cpp-f16": Kind("F16, KV f16", "llama.cpp", 2, "F16", "f16"),
    "openvino-int4-kv4": Kind("int4 g64, KV u4", "openvino", 1 / 2 + 2 / 64, None, "u4", 64),
    "openvino-int4-kv8": Kind("int4 g64, KV u8", "openvino", 1 / 2 + 2 / 64, None, "u8", 64),
}


@dataclass(frozen=True)
class Job:
    """One engine and what it opens: a packed folder, or random weights (of a named shape, where it
    is ours); file: the GGUF file that was written for it; cautious: without what is known to crash.
    """

    engine: str
    shape: Shape
    threads: int
    context: int
    scheme: str
    folder: str | None = None
    named: str | None = None
    file: str | None = None
    cautious: bool = False


def missing(name: str) -> str | None:
    """What is to be done before an engine can run here; None where it can."""
    family = KINDS[name].family
    if family == "native" and native.library() is None:
        return "install a C++ compiler and reinstall edgeqat"
    needed = {"llama.cpp": ["gguf", "llama_cpp"], "openvino": ["openvino"]}.get(family, [])
    if shutil.which(LLAMA_BENCH) and family == "llama.cpp":
        needed.remove("llama_cpp")
    if all(find_spec(module) for module in needed):
        return None
    return "pip install 'edgeqat[peers]'"


def unfit(name: str, shape: Shape) -> str | None:
    """Why an engine cannot hold matrices of these sizes; None where it can."""
    group = KINDS[name].group
    for field, size in (("hidden_size", shape.hidden), ("intermediate_size", shape.ffn)):
        if size % group:
            return f"{field} {size} is no multiple of its groups of {group}"
    return None


def select(wanted: Sequence[str]) -> list[str]:
    """Names of engines from names and families (`llama.cpp`); none given: all that can run."""
    if not wanted:
        return [name for name in KINDS if missing(name) is None]
    return choose("engine", wanted, {name: kind.family for name, kind in KINDS.items()}, missing)


def weight_bytes(job: Job, steps: Steps) -> int:
    """Bytes of the matrices that one decoding step of an open model reads."""
    if isinstance(steps, _Native):
        return steps.weight_bytes
    return int(KINDS[job.engine].bytes * job.shape.weights)


def file_bytes(job: Job, steps: Steps) -> int:
    """Bytes of all matrices of an open model: what its file holds."""
    return weight_bytes(job, steps) + steps.embedding_bytes


def open_steps(job: Job) -> Steps:
    """The model of a job, ready to run."""
    kind = KINDS[job.engine]
    if kind.family == "native":
        return _Native(job)
    if kind.family == "torch":
        from edgeqat.bench.torch_engine import TorchSteps

        return TorchSteps(job.shape, job.threads)
    if kind.family == "openvino":
        from edgeqat.bench.openvino import OpenVINO

        return OpenVINO(job.shape, job.threads, kind.kv)
    from edgeqat.bench.llama_cpp import LlamaCpp

    assert job.file is not None
    sizes = job.threads, job.context
    return LlamaCpp(Path(job.file), *sizes, kind.kv, job.shape.vocabulary, not job.cautious)


class _Native(Steps):
    """Our engine, on a packed folder or on random weights of a named shape."""

    def __init__(self, job: Job) -> None:
        from edgeqat.runtime.engine import Engine

        options: dict[str, Any] = {"threads": job.threads, "context": job.context}
        options["half"] = KINDS[job.engine].scheme == "w16a16kv16"
        if job.folder is not None:
            self._engine = Engine(job.folder, **options)
        else:
            assert job.named is not None
            self._engine = Engine.random(job.named, job.scheme, **options)
        self.isa, self.vocabulary = self._engine.isa, self._engine.vocabulary
        self.embedding_bytes = self._engine.embedding_bytes

    @property
    def weight_bytes(self) -> int:
        return self._engine.matrix_bytes

    @property
    def position(self) -> int:
        return self._engine.position

    def seek(self, depth: int) -> None:
        self._engine.rewind(min(depth, self.position))
        self.prefill(depth - self.position)

    def append(self, ids: list[int]) -> None:
        self._engine.prefill(ids)
