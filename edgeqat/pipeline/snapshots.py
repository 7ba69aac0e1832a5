"""Snapshots of a run's models for the report, taken while they exist and kept in its run folder."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from edgeqat.nn.blocks import decoder_layers
from edgeqat.pipeline.run import Run
from edgeqat.pipeline.task import Task
from edgeqat.report import snapshot
from edgeqat.report.snapshot import STAGES, Arrays


class Snapshots:
    """Snapshots of the float model, of PTQ and of QAT on one held-out text; a model without
    attention has none.
    """

    def __init__(self, task: Task, run: Run) -> None:
        self._run: Run = run
        self._names = decoder_layers(task.model)
        self._text = task.text() if self._names else None

    def take(self, stage: str, model: Any) -> None:
        """Keep the snapshot of a model under the name of its stage (STAGES)."""
        if self._text is None:
            return
        edges = None if stage == STAGES[0] else snapshot.load(self._file(STAGES[0]))
        taken = snapshot.take(model, self._text[0], self._names, edges)
        snapshot.save(self._file(stage), taken)

    def arrays(self) -> Arrays | None:
        """What the report needs of all of them."""
        if self._text is None:
            return None
        stages = {stage: snapshot.load(self._file(stage)) for stage in STAGES}
        return snapshot.assemble(stages, self._names, self._text[1])

    def _file(self, stage: str) -> Path:
        return self._run.folder / f"snapshot-{stage}.npz"
