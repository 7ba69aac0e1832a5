"""The coreset of a training stage: chosen before the first pass and again every R passes or steps.

A pass is one run through the coreset. Samples are exchanged between two passes, so that a run that
stopped continues with the ones it had. A selection that leaves the student's accuracy where it was
is named in the log (QuaRC 2507.17768: relative entropy may pick outliers).
"""

from __future__ import annotations

import logging
from typing import Any

import torch
from torch import Tensor
from transformers import TrainerControl, TrainerState, TrainingArguments

from edgeqat.coreset.sampler import CoresetSampler
from edgeqat.coreset.selection import Selection
from edgeqat.recipe.data import CoresetSection
from edgeqat.train import processes
from edgeqat.train.sample_choice import SampleChoice

logger = logging.getLogger(__name__)

STAGNANT = 0.5  # points of accuracy between two selections


class Reselection(SampleChoice):
    """Keeps a sampler on the samples that `selection` chooses; without one, on fixed ones."""

    sampler: CoresetSampler

    def __init__(self, section: CoresetSection, chosen: Selection | Tensor, seed: int) -> None:
        self.section = section
        self.selection = chosen if isinstance(chosen, Selection) else None
        index = torch.arange(chosen.count) if isinstance(chosen, Selection) else chosen
        self.sampler = CoresetSampler(index, seed)
        self.turns: list[dict[str, Any]] = []  # summaries of the selections so far

    def on_epoch_begin(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        model: Any = None,
        train_dataloader: Any = None,
        **_: Any,
    ) -> None:
        steps = -(-len(train_dataloader) // args.gradient_accumulation_steps)
        epoch = state.global_step // steps
        self.sampler.epoch = epoch
        if self.selection is None or not self._is_due(epoch, state.global_step):
            return
        before = self.sampler.index if self.turns else None
        progress = state.global_step / state.max_steps
        chosen = self.selection(model, progress, len(self.turns), before)
        self.sampler.exchange(processes.broadcast_from_first(lambda: chosen.indices))
        self.turns.append({"epoch": epoch, "step": state.global_step, **chosen.summary})
        self.recorder.selection_seconds += chosen.summary["seconds"]
        self._tell()

    def __len__(self) -> int:
        return len(self.sampler)

    def state(self) -> dict[str, Any]:
        return {"index": self.sampler.index.tolist(), "turns": self.turns}

    def restore(self, state: dict[str, Any]) -> None:
        self.sampler.exchange(torch.tensor(state["index"]))
        self.turns = state["turns"]

    def _is_due(self, epoch: int, step: int) -> bool:
        if not self.turns:
            return True
        last = self.turns[-1]
        if last["epoch"] == epoch:
            return False  # a run that continues in the middle of a pass
        if self.section.every_steps is not None:
            return bool(step - last["step"] >= self.section.every_steps)
        return bool(self.section.every) and epoch - last["epoch"] >= self.section.every

    def _tell(self) -> None:
        turn = self.turns[-1]
        parts = [f"coreset at epoch {turn['epoch']}: {turn['selected']} of {turn['samples']}"]
        parts.append(f"by {turn['selector']}")
        if turn["overlap"] is not None:
            parts.append(f"{100 * turn['overlap']:.0f}% of them as before")
        if turn["accuracy"] is not None:
            parts.append(f"accuracy over all samples {turn['accuracy']:.2f}%")
        logger.info("%s, %.0f s", ", ".join(parts), turn["seconds"])
        measured = [one for one in self.turns if one["accuracy"] is not None]
        if len(measured) > 1 and measured[-1]["accuracy"] - measured[-2]["accuracy"] < STAGNANT:
            logger.warning(
                "coreset: accuracy stands still since the selection at epoch %d (%.2f%%, now at "
                "epoch %d %.2f%%); the selector may pick outliers: try coreset.random_share=0.2 "
                "or another coreset.selector",
                measured[-2]["epoch"], measured[-2]["accuracy"], turn["epoch"], turn["accuracy"],
            )  # fmt: skip
