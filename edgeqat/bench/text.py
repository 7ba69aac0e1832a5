"""`edgeqat bench`: one packed folder, or one named shape with random weights, on engines."""

from __future__ import annotations

import csv
import logging
import platform
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from importlib.util import find_spec
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from edgeqat import native
from edgeqat.bench import latency, savings
from edgeqat.bench.chart import RATES, measured
from edgeqat.bench.engines import KINDS, Job, select, unfit
from edgeqat.bench.latency import Test
from edgeqat.errors import EdgeQATError, UsageError
from edgeqat.output import whole_file
from edgeqat.runtime import shape
from edgeqat.runtime.shape import Shape

_logger = logging.getLogger("edgeqat")
_READ_BYTES = 1 << 30  # of the read loop where no packed matrices say how many
_CPU_NAMES = ("model name", "Model", "Hardware")


@dataclass(frozen=True)
class Subject:
    """What is measured: a packed folder, or random weights of a named shape."""

    name: str
    scheme: str
    shape: Shape
    folder: Path | None = None

    @classmethod
    def of_folder(cls, folder: Path) -> Subject:
        from edgeqat import checkpoint

        config = checkpoint.read_config(folder)
        if "num_attention_heads" not in config or "intermediate_size" not in config:
            raise UsageError(
                f"folder: '{folder}' is of model_type '{config.get('model_type')}', which only "
                "torch runs; bench a model of the Llama family"
            )
        scheme = config["quantization_config"]["scheme"]
        return cls(folder.name, scheme, Shape.of_config(config), folder)

    @classmethod
    def of_shape(cls, name: str, scheme: str) -> Subject:
        return cls(name, scheme, shape.named(name))


def tests_for(subject: Subject, depths: Sequence[int]) -> list[Test]:
    """The default tests that fit the model; depths that were asked for must fit."""
    longest = subject.shape.context
    for depth in depths:
        if Test(tokens=latency.NEW_TOKENS, depth=depth).context > longest:
            raise UsageError(
                f"depth: {depth} and {latency.NEW_TOKENS} new tokens exceed the model's {longest} "
                "positions; choose a smaller one"
            )
    tests = latency.default_tests(depths or latency.DEPTHS)
    return [test for test in tests if test.context <= longest]


def run(
    subject: Subject,
    engines: Sequence[str] = (),
    threads: int | None = None,
    depths: Sequence[int] = (),
    repeat: int = 5,
    step: Callable[[str, str], None] = lambda engine, test: None,
) -> list[dict[str, Any]]:
    """Rows of every test and engine (none named: all that are installed), measured in turns; those
    of an engine that fails say why in "error".
    """
    tests = tests_for(subject, depths)
    names = _fitting(select(engines), subject.shape, bool(engines))
    if not tests:
        raise UsageError(
            f"folder: '{subject.name}' holds {subject.shape.context} tokens, fewer than any test "
            "takes; bench a longer one, or --shape"
        )
    counted = threads or native.physical_cores()
    context = max(test.context for test in tests)
    with _contenders(subject, names, counted, context) as contenders:
        sizes = (contender.weight_bytes for contender in contenders if contender.name == "native")
        size = next(sizes, 0) or _READ_BYTES
        able = native.library() is not None
        read = (lambda: native.read_speed(size, counted)) if able else None
        rows = latency.measure(contenders, tests, repeat, read, step)
    ran = any(row["engine"] == "native" for row in measured(rows))
    if subject.folder is not None and ran and not depths:
        step("native", "savings")
        rows += savings.run(subject.folder, counted, repeat)
    facts = {"model": subject.name, "threads": counted, "cpu": cpu_name()}
    for row in rows:
        row.update(facts, scheme=KINDS[row["engine"]].scheme or subject.scheme)
    return rows


def _fitting(names: Sequence[str], sizes: Shape, demanded: bool) -> list[str]:
    """Engines that can hold the matrices; another one is an error only where it was demanded."""
    fitting = []
    for name in names:
        reason = unfit(name, sizes)
        if reason and demanded:
            raise UsageError(f"engine: '{name}' does not run this model ({reason}); choose others")
        if reason:
            _logger.warning("engine: '%s' is left out (%s)", name, reason)
        else:
            fitting.append(name)
    return fitting


@contextmanager
def _contenders(
    subject: Subject, names: Sequence[str], threads: int, context: int
) -> Iterator[list[latency.Contender]]:
    """One process for each engine, with its model open; files and processes go afterwards.
    llama.cpp that dies is opened again without its extra buffers.
    """
    from edgeqat import checkpoint
    from edgeqat.bench.llama_bench import LlamaBench
    from edgeqat.bench.process import Worker

    with ExitStack() as stack:
        place = Path(stack.enter_context(TemporaryDirectory(prefix="edgeqat-bench-")))
        files = _write_files(place, subject.shape, names)
        opened: list[latency.Contender] = []
        for name in names:
            kind = KINDS[name]
            file = files.get(kind.file or "")
            folder = str(subject.folder) if subject.folder else None
            named = None if subject.folder else subject.name
            job = Job(name, subject.shape, threads, context, subject.scheme, folder, named, file)
            contender: latency.Contender
            if kind.family == "llama.cpp" and find_spec("llama_cpp") is None:
                contender = LlamaBench(job)
            else:
                spare = replace(job, cautious=True) if kind.family == "llama.cpp" else None
                try:
                    contender = worker = Worker(job, place / f"{name}.log", spare)
                except EdgeQATError as error:
                    opened.append(latency.Unopened(name, str(error)))
                    continue
                stack.callback(worker.close)
            if kind.family == "native" and subject.folder is not None:
                file = str(subject.folder / checkpoint.WEIGHTS)
            if file:
                contender.facts["file_bytes"] = Path(file).stat().st_size
            opened.append(contender)
        yield opened


def _write_files(place: Path, sizes: Shape, names: Sequence[str]) -> dict[str, str]:
    """GGUF files that the engines read, by type."""
    kinds = {KINDS[name].file for name in names} - {None}
    files: dict[str, str] = {}
    for kind in sorted(kind for kind in kinds if kind):
        from edgeqat.export.random_gguf import write_random

        path = place / f"{kind}.gguf"
        write_random(path, sizes, kind)
        files[kind] = str(path)
    return files


def cpu_name() -> str:
    """What the processor calls itself."""
    try:
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
            key, _, value = line.partition(":")
            if key.strip() in _CPU_NAMES and value.strip():
                return value.strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()


def check_measured(rows: list[dict[str, Any]]) -> None:
    """An EdgeQATError in one line where no engine gave a speed."""
    if not measured(rows):
        names = ", ".join(dict.fromkeys(row["engine"] for row in rows))
        raise EdgeQATError(
            f"engine: {names} failed ({rows[0]['error']}); choose others with --engine"
        )


def write_csv(path: Path, rows: list[dict[str, Any]]) -> None:
    """One line a row, mean and sd in columns of their own."""
    flat = []
    for row in rows:
        rate = next((name for name in RATES if name in row), None)
        speeds = {} if rate is None else {rate: row[rate]["mean"], "sd": row[rate]["sd"]}
        flat.append({**row, **speeds})
    columns = list(dict.fromkeys(name for row in flat for name in row))
    with whole_file(path) as part, open(part, "w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, columns)
        writer.writeheader()
        writer.writerows(flat)
