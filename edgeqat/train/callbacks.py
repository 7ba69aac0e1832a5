"""What a run tells while it trains: one record per interval to metrics.jsonl, and the same record
to a listener. A listener with a method `moved` is told where the run is after every step, by a
record without terms.

A record: step, seconds, tokens_per_second (of images: samples_per_second), learning_rate and the
mean of every loss term since the last record. Seconds spent on selecting samples count apart. A run
that continues at a step drops the records after it.
"""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from edgeqat.output import json_text, write_text

logger = logging.getLogger(__name__)

Listener = Callable[[dict[str, Any]], None]


class Recorder(TrainerCallback):
    """Writes metrics.jsonl (when a path is given) and calls the listener (when there is one)."""

    def __init__(
        self,
        stage: str,
        per_step: float,
        unit: str,
        path: Path | None,
        listener: Listener | None,
    ) -> None:
        self.stage, self.path, self.listener = stage, path, listener
        self.per_step, self.unit = per_step, unit
        self.seconds_before = 0.0  # spent by earlier parts of the run
        self.selection_seconds = 0.0
        self._selection_before = 0.0  # of it, not within this process's time
        self.start = time.perf_counter()

    def continue_from(self, seconds: float, selection_seconds: float) -> None:
        """Count on from what earlier parts of the run spent."""
        self.seconds_before = seconds
        self.selection_seconds = self._selection_before = selection_seconds

    @property
    def seconds(self) -> float:
        """Training time of the run so far, without selection."""
        selecting = self.selection_seconds - self._selection_before
        return self.seconds_before + time.perf_counter() - self.start - selecting

    @property
    def rate(self) -> str:
        """The record's field of speed."""
        return f"{self.unit}_per_second"

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any
    ) -> None:
        self.start = time.perf_counter()
        if self.path is not None and state.is_world_process_zero:
            truncate(self.path, state.global_step)
        self._tell_position(state)

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any
    ) -> TrainerControl:
        control.should_log |= state.global_step >= state.max_steps  # the last steps count too
        self._tell_position(state)
        return control

    def on_log(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        logs: dict[str, Any] | None = None,
        **_: Any,
    ) -> None:
        if not logs or "loss" not in logs or not state.is_world_process_zero:
            return
        names = {"epoch", "grad_norm", "learning_rate"}
        terms = {k: round(v, 6) for k, v in logs.items() if k not in names}
        record = self._record(state, logs.get("learning_rate"), terms)
        if self.path is not None:
            with open(self.path, "a", encoding="utf-8") as file:
                file.write(json_text(record, indent=None))
        spoken = "  ".join(f"{name} {value:.4f}" for name, value in terms.items())
        logger.debug(
            "%s step %5d/%d  %s  %.0f %s/s",
            self.stage, state.global_step, state.max_steps, spoken, record[self.rate], self.unit,
        )  # fmt: skip
        if self.listener is not None:
            self.listener(record)

    def _tell_position(self, state: TrainerState) -> None:
        moved = getattr(self.listener, "moved", None)
        if moved is not None and state.is_world_process_zero:
            moved(self._record(state, None, {}))

    def _record(
        self, state: TrainerState, learning_rate: float | None, terms: dict[str, float]
    ) -> dict[str, Any]:
        seconds = self.seconds
        done = state.global_step * self.per_step
        return {
            "stage": self.stage,
            "step": state.global_step,
            "steps": state.max_steps,
            "seconds": round(seconds, 3),
            self.rate: round(done / max(seconds, 1e-9), 1),
            "learning_rate": learning_rate,
            "terms": terms,
        }


def truncate(path: Path, step: int) -> None:
    """Drop the records after `step`, and a line that was cut off in the middle."""
    if not path.is_file():
        return
    kept = []
    for line in path.read_text(encoding="utf-8").splitlines(keepends=True):
        try:
            if line.endswith("\n") and json.loads(line)["step"] <= step:
                kept.append(line)
        except ValueError:
            pass
    write_text(path, "".join(kept))
