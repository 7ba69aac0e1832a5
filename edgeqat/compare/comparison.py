"""`edgeqat compare`: ways of quantizing one float language model, side by side on the same held-out
blocks, into one folder.

    compare.json          command, conditions, machine, versions and the rows
    compare.svg           KL to the float model against size
    recipe.resolved.yaml  the recipe, every default written out

The folder is whole or absent. Until it is whole, the run folder beside it (pipeline/run) holds the
rows that are done, and the same command continues with the others; it may name other rows.
"""

from __future__ import annotations

import logging
import math
import platform
import shutil
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from importlib.metadata import version
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import edgeqat
from edgeqat import checkpoint, native
from edgeqat.bench.text import cpu_name
from edgeqat.compare import chart, process
from edgeqat.compare.inputs import Inputs
from edgeqat.compare.rows import FLOAT, KINDS, Row, described, packages, select
from edgeqat.compare.sizes import Counts
from edgeqat.compare.work import F16, IMPORTANCE, REFERENCE, Job, quantized_file
from edgeqat.errors import EdgeQATError, ModelError, UsageError
from edgeqat.hf import float_model
from edgeqat.output import json_text, write_text
from edgeqat.pipeline.image_task import is_image_model
from edgeqat.pipeline.load import load_task, with_data_root
from edgeqat.pipeline.run import Run, identity, open_run
from edgeqat.pipeline.self_text import with_self_text
from edgeqat.pipeline.text_task import TextTask
from edgeqat.recipe import files as recipes
from edgeqat.recipe.files import RESOLVED
from edgeqat.recipe.recipe import Recipe

logger = logging.getLogger(__name__)

FILE, PICTURE = "compare.json", "compare.svg"
Step = Callable[[str], None]


class _Fleeting:
    """A run without an output: nothing of it is kept."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def result(self, name: str, compute: Callable[[], Any]) -> Any:
        return compute()


def compare(
    recipe: Recipe,
    output: Path | None = None,
    overwrite: bool = False,
    rows: str | None = None,
    schemes: Sequence[str] = (),
    trained: Sequence[Path] = (),
    steps: int = 0,
    threads: int | None = None,
    command: str = "",
    step: Step = lambda name: None,
) -> dict[str, Any]:
    """Compute the rows of a recipe's model (see compare/rows; None: all that can be) on its
    held-out blocks, and write the folder `output` where one is named; returns what compare.json
    holds. `trained` are packed folders, `steps` those of training at each scheme.

    A row that fails says why in "error". Raises an EdgeQATError in one line.
    """
    name, recipe = recipe.model.name, with_self_text(with_data_root(recipe))
    folders = [(_scheme_of(folder), str(folder.absolute())) for folder in trained]
    chosen = select(rows, list(dict.fromkeys(schemes or [recipe.quant.scheme])), folders, steps)
    _check_text_model(recipe)
    task = load_task(recipe)
    assert isinstance(task, TextTask)
    for folder in trained:
        _check_same_model(folder, task.model.config)
    counted = threads or native.physical_cores()
    model_hash = float_model.fingerprint(recipe.model.name, recipe.model.weights)
    wanted = identity("compare", recipe, model_hash, task.train, task.valid)
    with _opened(output, overwrite, wanted) as run:
        finished = run.metrics() if isinstance(run, Run) else None
        if finished is not None:
            return finished
        inputs = Inputs(run.folder)
        inputs.write(recipe, task)
        counts = Counts.of_model(task.model)
        comparison = {
            "model": name,
            "data": task.source(recipe),
            "command": command,
            "parameters": counts.parameters,
            "evaluation": task.conditions(recipe),
            "calibration_tokens": sum(batch.numel() for batch in task.calibration(recipe)),
            "machine": _machine(counted),
            "versions": _versions(chosen),
        }
        del task
        comparison["rows"] = _computed(chosen, run, counts, counted, steps, step)
        if isinstance(run, Run):
            _write(run, comparison, recipe)
    return comparison


def check_computed(comparison: dict[str, Any]) -> None:
    """An EdgeQATError in one line where no row but the float model's has scores."""
    others = comparison["rows"][1:]
    if others and all("error" in row for row in others):
        names = ", ".join(dict.fromkeys(row["row"] for row in others))
        raise EdgeQATError(
            f"rows: {names} failed ({others[0]['error']}); choose others with --rows"
        )


def _computed(
    rows: Sequence[Row], run: Run | _Fleeting, counts: Counts, threads: int, steps: int, step: Step
) -> list[dict[str, Any]]:
    """The rows, one after the other; files that later rows do not need go."""
    place, errors, table = run.folder, {}, list[dict[str, Any]]()

    def done(name: str, row: Row | None = None) -> dict[str, Any]:
        job = Job(name, str(place), threads, counts)
        if row is not None:
            row_steps = steps if row.name == "ours-qat" and row.folder is None else 0
            job = Job(name, str(place), threads, counts, row.scheme, row.folder, row_steps)
        return process.run(job, place / f"{row.label if row else name}.log")

    def share(name: str, file: Path) -> None:
        """Make a file that several rows need; why it cannot be made, they will say."""
        if file.exists() or name in errors:
            return
        step(name)
        try:
            done(name)
        except EdgeQATError as error:
            errors[name] = str(error)

    def result(row: Row) -> dict[str, Any]:
        kind = row.kind
        if row.name != FLOAT and not (place / REFERENCE).exists():
            step("float logits")
            done(FLOAT)
        if kind.family == "llama.cpp":
            share(F16, place / F16)
            if kind.importance:
                share(IMPORTANCE, place / f"{IMPORTANCE}.safetensors")
            for needed in (F16, *([IMPORTANCE] if kind.importance else [])):
                if needed in errors:
                    raise EdgeQATError(errors[needed])
        step(f"{row.label}, {len(table) + 1} of {len(rows)}")
        return done(row.name, row)

    for number, row in enumerate(rows):
        settings = f"{row.label} {row.folder or ''} {steps if row.name == 'ours-qat' else ''}"
        entry = described(row)
        try:
            entry |= run.result(settings.strip(), partial(result, row))
            _check_finite(entry)
        except EdgeQATError as error:
            if row.name == FLOAT:
                raise
            entry["error"] = str(error)
        table.append(_over_float(entry, table))
        logger.info("%s", words(entry))
        _tidy(place, row, rows[number + 1 :])
    return table


def _check_finite(entry: dict[str, Any]) -> None:
    for name in ("perplexity", "kl"):
        if entry[name] is None or not math.isfinite(entry[name]):
            raise EdgeQATError(f"its {name} is not a finite number")


def words(entry: dict[str, Any]) -> str:
    """A row in a line."""
    name = f"{entry['row']} ({entry['format']})"
    if "error" in entry:
        return f"{name}: failed, {entry['error']}"
    return f"{name}: perplexity {entry['perplexity']:.3f}, KL {entry['kl']:.4f}"


def _over_float(entry: dict[str, Any], table: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """The row with its perplexity against the float model's, in percent."""
    if "error" in entry:
        return entry
    floating = table[0]["perplexity"] if table else entry["perplexity"]
    return {**entry, "over_float": 100 * (entry["perplexity"] / floating - 1)}


def _tidy(place: Path, row: Row, later: Sequence[Row]) -> None:
    """Remove the file of a row of llama.cpp that no later one reads, and what a row of torch wrote;
    those that several kinds share stay.
    """
    for folder in place.glob(f".{row.name}*"):
        shutil.rmtree(folder, ignore_errors=True)
    if row.kind.family != "llama.cpp" or row.kind.file == "F16":
        return
    file = quantized_file(place, row.name)
    if file not in [quantized_file(place, other.name) for other in later if other.kind.file]:
        file.unlink(missing_ok=True)
        file.with_suffix(".json").unlink(missing_ok=True)


@contextmanager
def _opened(
    output: Path | None, overwrite: bool, wanted: dict[str, Any]
) -> Iterator[Run | _Fleeting]:
    if output is not None:
        with open_run(output, overwrite, wanted) as run:
            yield run
        return
    with TemporaryDirectory(prefix="edgeqat-compare-") as place:
        yield _Fleeting(Path(place))


def _write(run: Run, comparison: dict[str, Any], recipe: Recipe) -> None:
    with run.finished(comparison) as folder:
        write_text(folder / FILE, json_text(comparison))
        write_text(folder / PICTURE, chart.picture(comparison))
        write_text(folder / RESOLVED, recipes.dump(recipe))


def _scheme_of(folder: Path) -> str:
    """The scheme of a packed folder."""
    config = checkpoint.read_config(folder)
    if "quant" not in config["quantization_config"]:
        raise ModelError(f"qat: '{folder}' is no language model; name a packed folder of one")
    return str(config["quantization_config"]["scheme"])


def _check_same_model(folder: Path, config: Any) -> None:
    """Refuse a packed folder of another model."""
    packed = checkpoint.read_config(folder)
    for field in ("model_type", "vocab_size", "hidden_size", "num_hidden_layers"):
        wanted = getattr(config, field, None)
        stored = packed.get(config.attribute_map.get(field, field), wanted)
        if stored != wanted:
            raise ModelError(
                f"qat: {field} of '{folder}' is {stored}, the model's is {wanted}; name a folder "
                "packed from this model"
            )


def _check_text_model(recipe: Recipe) -> None:
    if is_image_model(recipe.model.name):
        raise UsageError(
            f"model: '{recipe.model.name}' is an image classifier; compare takes language models"
        )
    if checkpoint.is_packed(Path(recipe.model.name).expanduser()):
        raise ModelError(
            f"model: '{recipe.model.name}' is a packed folder; name its float model, and the "
            "folder with --qat"
        )
    if recipe.data.streaming:
        raise UsageError(
            "data.streaming: every row calibrates on the same text in memory; set it to false"
        )


def _machine(threads: int) -> dict[str, Any]:
    return {
        "cpu": cpu_name(),
        "threads": threads,
        "system": f"{platform.system()} {platform.machine()}",
    }


def _versions(rows: Sequence[Row]) -> dict[str, str]:
    libraries = {name: version(name) for name in ("torch", "transformers")}
    names = [row.name for row in rows if row.name in KINDS]
    return {
        "edgeqat": edgeqat.__version__, "python": platform.python_version(), **libraries,
        **packages(names),
    }  # fmt: skip
