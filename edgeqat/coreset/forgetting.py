"""Forgetting events (1812.05159): a throw-away copy of the student learns all samples from their
labels, and is asked for all of them every so often; the score counts how often a sample went from
right to wrong.

Legend: E times asked, N samples.
"""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import Tensor, nn
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from edgeqat.coreset import scores
from edgeqat.coreset.samples import Samples
from edgeqat.nn.folding import inference
from edgeqat.recipe.data import CoresetSection
from edgeqat.recipe.recipe import Recipe
from edgeqat.train import processes
from edgeqat.train.objective import Objective
from edgeqat.train.trainer import QATTrainer

TIMES = 10


class Questions(TrainerCallback):
    """Asks a model for all samples every `every` steps; `correct` holds the answers."""

    def __init__(self, samples: Samples, every: int) -> None:
        self.samples, self.every = samples, every
        self.correct: list[Tensor] = []

    def on_step_end(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        model: Any = None,
        **_: Any,
    ) -> None:
        if state.global_step % self.every == 0:
            self.correct.append(correctness(model, self.samples))


def correctness(model: nn.Module, samples: Samples) -> Tensor:
    """Which samples (N,) a model in eval mode gets right."""
    rows = []
    with inference(model) as ready:
        for index in processes.shard(len(samples)).split(samples.at_once):
            predictions = samples.logits(ready, index).argmax(-1).cpu()
            rows.append(predictions == samples.labels(index))
    return processes.gathered(torch.cat(rows).float(), len(samples)).bool()


def forgetting_scores(
    student: nn.Module, data: Any, samples: Samples, objective: Objective, recipe: Recipe
) -> Tensor:
    """Scores (N,) from a training of `coreset.trial_steps` steps; the student stays as it is."""
    steps = recipe.coreset.trial_steps
    train = recipe.train.model_copy(update={"steps": steps, "save_steps": 0})
    trial = recipe.model_copy(update={"train": train, "coreset": CoresetSection()})
    questions = Questions(samples, max(1, steps // TIMES))
    trainer = QATTrainer(copy.deepcopy(student), trial, data, objective, "trial")
    trainer.add_callback(questions)
    trainer.run()
    return scores.forgetting(torch.stack(questions.correct))
