"""What goes wrong in layer correction, told in the log: the logits come closer to the teacher's
while the blocks do not (QuaRC 2507.17768: intermediate layers fail to quantize).
"""

from __future__ import annotations

import logging
from typing import Any

from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

logger = logging.getLogger(__name__)

FALLEN, HIGH = 0.5, 0.9  # shares of the first record


class Diagnosis(TrainerCallback):
    """Compares the terms `kl` and `correction` with those of the first record; warns once."""

    def __init__(self) -> None:
        self.first: dict[str, float] = {}  # terms; a checkpoint keeps them, and whether it warned
        self.told = False

    def on_log(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        logs: dict[str, Any] | None = None,
        **_: Any,
    ) -> None:
        if self.told or not logs or not {"kl", "correction"} <= set(logs):
            return
        if not self.first:
            self.first = {name: logs[name] for name in ("kl", "correction")}
            return
        fallen = logs["kl"] < FALLEN * self.first["kl"]
        if fallen and logs["correction"] > HIGH * self.first["correction"]:
            self.told = True
            logger.warning(
                "correction: at epoch %.1f it is still %.0f%% of what it was while kl is down to "
                "%.0f%%; intermediate layers fail to quantize: raise correct.weight or their bits",
                state.epoch or 0.0,
                100 * logs["correction"] / self.first["correction"],
                100 * logs["kl"] / self.first["kl"],
            )
