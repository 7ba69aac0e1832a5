"""Snapshots of a run's models for the report, taken while they exist and kept in its run folder."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from torch import Tensor

from edgeqat.nn.blocks import decoder_layers
from edgeqat.pipeline.run import Run
from edgeqat.pipeline.task import Task
from edgeqat.report import snapshot
from edgeqat.report.snapshot import STAGES, Arrays


class Snapshots:
    """Snapshots of the float model, of PTQ and of QAT on one held-out block; a model without
    attention has none.
    """

    def __init__(self, inputs: Task, run: Run) -> None:
        self._run: Run = run
        self._inputs: Any = inputs
        self._names = decoder_layers(inputs.model)

    def take(self, stage: str, model: Any) -> None:
        """Keep the snapshot of a model under the name of its stage (STAGES)."""
        if not self._names:
            return
        edges = None if stage == STAGES[0] else snapshot.load(self._file(STAGES[0]))
        taken = snapshot.take(model, self._ids(), self._names, edges)
        snapshot.save(self._file(stage), taken)

    def arrays(self) -> Arrays | None:
        """What the report needs of all of them."""
        if not self._names:
            return None
        stages = {stage: snapshot.load(self._file(stage)) for stage in STAGES}
        tokens = [str(self._inputs.tokenizer.decode([id])) for id in self._ids().tolist()]
        return snapshot.assemble(stages, self._names, tokens)

    def _ids(self) -> Tensor:
        valid = self._inputs.valid
        return valid.ids[len(valid) // 2]

    def _file(self, stage: str) -> Path:
        return self._run.folder / f"snapshot-{stage}.npz"
