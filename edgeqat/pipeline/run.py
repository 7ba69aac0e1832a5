"""The run folder `OUTPUT.run`, beside the output: what a run that stopped left, and where the same
command continues.

    run.json        what the run is: verb, resolved recipe, hashes of model and data, processes
    results.json    numbers that its stages have computed
    metrics.jsonl   records of training
    start.safetensors  compensated weights that training starts from (pipeline/preparation)
    before_trials.safetensors  the start of training, while --minutes tries learning rates
    snapshot-*.npz  what the report draws of models that are gone (pipeline/snapshots)
    float/, qat/    checkpoints of a stage (train/checkpoints)

The output is put together in here too and moved out in one step; then the folder goes. A folder of
another run is never continued: with `overwrite` it is replaced, else refused.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any, TypeVar

import edgeqat
from edgeqat import checkpoint
from edgeqat.checkpoint import RECORDS, atomic_folder, check_output
from edgeqat.data.images import Images
from edgeqat.data.text import Blocks, BlockStream
from edgeqat.errors import Interrupted, OutputError, StorageError, UsageError
from edgeqat.hf import float_model
from edgeqat.output import real, write_text
from edgeqat.pipeline.start import run_folder
from edgeqat.recipe.recipe import Recipe
from edgeqat.train import processes
from edgeqat.train.checkpoints import Checkpoints

logger = logging.getLogger(__name__)

_RUN = "run.json"
DRAWS = 2  # rises when a seed draws other numbers: a run that began before cannot go on
_RESULTS = "results.json"
_LOCK = ".lock"
_FINISHED = "finished"
_STAGES = ("qat", "float")  # the later one first
T = TypeVar("T")


class Run:
    """One run on its way to `output`. Only the first process writes."""

    def __init__(self, output: Path, overwrite: bool) -> None:
        self.output, self.overwrite = real(output), overwrite
        self.folder = run_folder(output)
        self.records = self.folder / RECORDS

    def checkpoints(self, stage: str) -> Checkpoints:
        """The checkpoints of a stage."""
        return Checkpoints(self.folder / stage)

    def known(self, name: str) -> Any:
        """A number that an earlier part of the run computed; None without."""
        return self._results().get(name)

    def result(self, name: str, compute: Callable[[], T]) -> T:
        """What the first process computes (a JSON value), once in the life of the run."""

        def computed() -> T:
            results = self._results()
            if name not in results:
                _write(self.folder / _RESULTS, {**results, name: compute()})
            return self._results()[name]

        return processes.broadcast_from_first(computed)

    @contextmanager
    def finished(self, metrics: dict[str, Any]) -> Iterator[Path]:
        """A folder to fill (records are in it already) that becomes the output at the end of the
        block; `metrics` are what a command that finds it done will report.
        """
        with atomic_folder(self.output, self.overwrite, inside=self.folder) as folder:
            if self.records.is_file():
                shutil.copyfile(self.records, folder / RECORDS)
            yield folder
            _write(self.folder / _RESULTS, {**self._results(), _FINISHED: metrics})

    def metrics(self) -> dict[str, Any] | None:
        """Metrics of a run that was killed between moving its output out and tidying up."""
        halves = [path for path in self.folder.glob(f".{self.output.name}.*") if path.is_dir()]
        moved = self.output.is_dir() and all(path.suffix == ".old" for path in halves)
        return self.known(_FINISHED) if moved else None

    def position(self) -> str:
        """Where the run continues, for example `at step 50 of qat`."""
        for stage in _STAGES:
            last = self.checkpoints(stage).latest()
            if last is not None:
                return f"at step {last[0]} of {stage}"
        return "with what is computed so far"

    def _results(self) -> dict[str, Any]:
        return _read(self.folder / _RESULTS) or {}


def identity(
    verb: str, recipe: Recipe, model: str, *data: Blocks | BlockStream | Images
) -> dict[str, Any]:
    """What makes two runs the same: of a stream only its names and the held-out text count."""
    prints = [part.fingerprint() for part in data if not isinstance(part, BlockStream)]
    teacher, file = recipe.distill.teacher, Path(recipe.coreset.file or "").expanduser()
    return {
        "verb": verb,
        "edgeqat": edgeqat.__version__,
        "draws": DRAWS,
        "processes": processes.count(),
        "model": model,
        "data": hashlib.sha256("".join(prints).encode()).hexdigest(),
        "recipe": recipe.model_dump(mode="json"),
        "coreset": checkpoint.sha256(file) if file.is_file() else None,
        "teacher": None if teacher is None else float_model.fingerprint(teacher),
    }


@contextmanager
def open_run(output: Path, overwrite: bool, wanted: dict[str, Any]) -> Iterator[Run]:
    """Start the run `wanted` (see identity), or continue it where it stopped.

    The run folder goes when the block ends well, and when nothing in it is worth continuing.
    Raises OutputError for a run folder of something else; Interrupted and StorageError say how to
    continue.
    """
    run = Run(output, overwrite)
    made = [parent for parent in run.folder.parents if not parent.exists()]
    with ExitStack() as held:
        try:
            if processes.is_first():
                _enter(run, wanted, held)
        except OSError as error:
            raise OutputError(
                f"output: '{run.folder}' cannot be made ({error.strerror}); choose another --output"
            ) from None
        processes.wait()
        keep = True
        try:
            yield run
            processes.wait()
            keep = False
        except (KeyboardInterrupt, Interrupted) as error:
            keep = _is_worth_keeping(run)
            said = str(error) or "interrupted"
            rest = f"the same command continues {run.position()} (kept in '{run.folder}')"
            raise Interrupted(f"{said}; {rest if keep else 'nothing was written'}") from None
        except OSError as error:
            keep = _is_worth_keeping(run)
            raise StorageError(
                f"output: writing '{error.filename or run.folder}' failed "
                f"({error.strerror or error}); free some space and run the same command again"
            ) from None
        except BaseException as error:
            keep = _is_worth_keeping(run, wrong_use=isinstance(error, UsageError))
            raise
        finally:
            if processes.is_first() and not keep:
                _remove(run.folder, made)


def _enter(run: Run, wanted: dict[str, Any], held: ExitStack) -> None:
    """Make the run folder, or take over the one that is there."""
    if not run.folder.exists():
        check_output(run.output, run.overwrite)
        run.folder.mkdir(parents=True)
    elif not (run.folder / _RUN).exists() and any(run.folder.glob("[!.]*")):
        raise OutputError(
            f"output: '{run.folder}' is in the way and no run of edgeqat; choose another --output"
        )
    _lock(run.folder, held)
    stored = _read(run.folder / _RUN)
    if stored == wanted:
        if run.metrics() is None:
            check_output(run.output, run.overwrite)
            logger.info(
                "continuing the unfinished run in '%s' %s; delete the folder to start over",
                run.folder, run.position(),
            )  # fmt: skip
            for path in run.folder.glob(".*"):  # half-written
                shutil.rmtree(path, ignore_errors=True)
    elif stored is not None and not run.overwrite:
        raise OutputError(
            f"output: '{run.folder}' holds an unfinished run of something else "
            f"({_difference(stored, wanted)}); repeat its command, add --overwrite to start over, "
            "or choose another --output"
        )
    else:
        check_output(run.output, run.overwrite)
        _clear(run.folder)
        _write(run.folder / _RUN, wanted)


def _lock(folder: Path, held: ExitStack) -> None:
    """Keep other processes out while this one works, where the system and the disk have locks."""
    try:
        import fcntl
    except ImportError:
        return
    handle = os.open(folder / _LOCK, os.O_RDWR | os.O_CREAT)
    held.callback(os.close, handle)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise OutputError(
            f"output: another process is working in '{folder}'; wait for it or choose another "
            "--output"
        ) from None
    except OSError:
        logger.debug("no locks in '%s'", folder)


def _clear(folder: Path) -> None:
    """Empty a run folder but for run.json and the lock, results last: killed on the way, it is
    still known.
    """
    inside = list(folder.glob("*")) + list(folder.glob(".*"))
    for path in sorted(inside, key=lambda path: path.name == _RESULTS):
        if path.is_dir():
            shutil.rmtree(path, ignore_errors=True)
        elif path.name not in (_RUN, _LOCK):
            path.unlink(missing_ok=True)


def _remove(folder: Path, parents: list[Path]) -> None:
    """Remove a run folder, and those of the parents made for it that hold nothing else."""
    _clear(folder)
    shutil.rmtree(folder, ignore_errors=True)
    for parent in parents:
        with suppress(OSError):
            parent.rmdir()


def _is_worth_keeping(run: Run, wrong_use: bool = False) -> bool:
    if any(run.checkpoints(stage).latest() for stage in _STAGES):
        return True
    return (run.folder / _RESULTS).is_file() and not wrong_use


def _difference(stored: dict[str, Any], wanted: dict[str, Any], path: str = "") -> str:
    """The first field in which two runs differ."""
    for name in dict.fromkeys([*wanted, *stored]):
        there, here = stored.get(name), wanted.get(name)
        if there == here:
            continue
        if isinstance(there, dict) and isinstance(here, dict):
            return _difference(there, here, "" if name == "recipe" else f"{path}{name}.")
        if name in ("model", "data", "coreset", "teacher") and not path:
            return f"another {name}"
        return f"{path}{name}: {there} there, {here} here"
    return "another run"


def _write(file: Path, values: dict[str, Any]) -> None:
    """Write what only _read() reads: numbers that are not finite come back as they were."""
    write_text(file, json.dumps(values, indent=2) + "\n")


def _read(file: Path) -> dict[str, Any] | None:
    try:
        values = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return values if isinstance(values, dict) else None
