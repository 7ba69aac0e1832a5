"""Ctrl-C and SIGTERM while training: the step in hand is finished and saved, then the run stops.

A second signal stops at once; the last checkpoint stays. With several processes all of them stop
after the same step, whichever one was told.
"""

from __future__ import annotations

import logging
import signal
import threading
from typing import Any

import torch
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

logger = logging.getLogger(__name__)

_SIGNALS = (signal.SIGINT, signal.SIGTERM)


class Interruption(TrainerCallback):
    """Within its `with` block signals are requests; `requested` says whether one came."""

    def __init__(self) -> None:
        self.requested = False
        self._before: dict[signal.Signals, Any] = {}

    def __enter__(self) -> Interruption:
        self.requested = False
        if threading.current_thread() is threading.main_thread():  # others may not set handlers
            self._before = {number: signal.signal(number, self._note) for number in _SIGNALS}
        return self

    def __exit__(self, *_: Any) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)
        self._before = {}

    def _note(self, *_: Any) -> None:
        if self.requested:
            raise KeyboardInterrupt
        self.requested = True
        logger.warning("stopping after this step; once more stops at once")

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any
    ) -> TrainerControl:
        if args.world_size > 1:
            requested = torch.tensor([float(self.requested)], device=args.device)
            torch.distributed.all_reduce(requested, torch.distributed.ReduceOp.MAX)
            self.requested = bool(requested.item())
        if self.requested:
            control.should_save = args.save_strategy != "no"
            control.should_training_stop = True
        return control
