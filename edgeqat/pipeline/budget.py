"""A run that ends in time (`train.minutes`): how much text decoder layers are trained on one by
one, how many steps follow, and at which learning rate.

Nothing is guessed that can be measured: the speed on two steps, the learning rate on two short
trials from the same start, judged by the KL to the float model on blocks that nothing is trained
on. What was decided stays in the run folder, so that a continued run does what the undisturbed one
would have done.
"""

from __future__ import annotations

import logging
import math
import time
from typing import Any

from torch import nn

from edgeqat.data.text import Blocks
from edgeqat.errors import UsageError
from edgeqat.nn import convert
from edgeqat.pipeline.preparation import (
    fake_quantized,
    freeze_embedding,
    keep_state,
    load_state,
)
from edgeqat.pipeline.run import Run
from edgeqat.pipeline.speed import step_seconds
from edgeqat.pipeline.task import Task
from edgeqat.pipeline.teaching import teaching
from edgeqat.pipeline.text_task import TextTask
from edgeqat.recipe.recipe import Recipe
from edgeqat.recipe.train import LARGEST_BF16_BETA
from edgeqat.train import processes
from edgeqat.train.callbacks import Listener
from edgeqat.train.optim import with_rates

logger = logging.getLogger(__name__)

NOT_NEEDED = math.log(1.005), 0.01  # nats over float, and KL, that no training is worth
SHARES = (0.1, 0.03)  # of the rule's learning rate, which is that of 8M models, in the trials
_SCALE_SHARE = 0.05  # of the weights' rate
_BLOCK_SHARE = 0.8  # of the time, for training decoder layers one by one
_BLOCK_PASSES = 2
_BLOCK_COST = 0.8  # of a token in such a pass, in tokens of a step
_ROUNDING_COST = 1.2  # of a token that weights are rounded on
_TRIAL_SHARE = 0.08  # of the steps, for each trial
_LEAST_STEPS, _LEAST_TRIAL = 40, 8  # fewer are not worth their trials
_SLACK = 1.1  # steps take longer than measured
_LARGE = 40_000_000  # parameters
_PART_TOKENS = 512  # of a micro-batch
_START = "before_trials.safetensors"


class Budget:
    """The time that a run of a language model has, from `begun` (time.monotonic)."""

    def __init__(self, recipe: Recipe, task: Task, run: Run, begun: float) -> None:
        assert recipe.train.minutes is not None
        if not isinstance(task, TextTask):
            raise UsageError("train.minutes: it is for language models; give --steps")
        self._minutes, self._begun = recipe.train.minutes, begun
        self._task, self._run = task, run
        self._tokens = task.step_tokens(recipe)
        task.keep_apart()

    def with_blocks(self, recipe: Recipe) -> Recipe:
        """The recipe with as much text for decoder layers trained one by one as there is time for.
        Refuses a time in which not even the weights can be rounded.
        """
        if not convert.compensates(self._task.model, recipe.quant):
            return recipe
        batches = self._run.result("calibration_batches", lambda: self._batches(recipe))
        if not batches:
            return recipe
        activation = recipe.quant.activation.model_copy(update={"calibration_batches": batches})
        quant = recipe.quant.model_copy(update={"activation": activation})
        blocks = recipe.train.blocks.model_copy(update={"passes": _BLOCK_PASSES})
        train = recipe.train.model_copy(update={"blocks": blocks})
        return recipe.model_copy(update={"quant": quant, "train": train})

    def with_training(
        self, recipe: Recipe, model: nn.Module, metrics: dict[str, Any], listener: Listener | None
    ) -> Recipe:
        """The recipe with steps and learning rate for the time that is left; `model` is what
        training starts from, and is that again afterwards.
        """
        chosen = processes.broadcast_from_first(lambda: self._run.known("decision"))
        if chosen is None:
            freeze_embedding(model)
            parts = _in_parts(recipe, model)
            recipe = recipe.model_copy(update={"train": recipe.train.model_copy(update=parts)})
            decided = {**self._decide(recipe, model, metrics, listener), **parts}
            chosen = self._run.result("decision", lambda: decided)
        metrics["trials"] = chosen.pop("trials")
        update = {**chosen, "minutes": None, "compare_float": False, "embedding": False}
        return recipe.model_copy(update={"train": recipe.train.model_copy(update=update)})

    def keep_the_better(self, model: nn.Module) -> bool:
        """Whether training has brought a model nearer to float; if not, it is the start again."""
        before = self._run.known("start_divergence")
        if before is None or self._task.divergence(model) < before:
            return True
        load_state(model, self._run.folder / _START)
        logger.warning("training did not bring the model nearer to float: its start is packed")
        return False

    def _batches(self, recipe: Recipe) -> int:
        """Calibration batches that leave time for everything else; 0: those of the recipe."""
        rate = self._tokens / step_seconds(
            fake_quantized(self._task, recipe.quant), self._task, recipe
        )
        usual = recipe.quant.activation.calibration_batches
        rounding = _ROUNDING_COST * usual * self._tokens / rate
        if self._left < rounding:
            least = math.ceil((60 * self._minutes - self._left + _SLACK * rounding) / 30)
            raise UsageError(
                f"train.minutes: {self._minutes:g} are too few to round the weights on this "
                f"machine; give at least {least}, or --steps 0"
            )
        room = _BLOCK_SHARE * (self._left - rounding) * rate
        count = int(room / (_BLOCK_COST * _BLOCK_PASSES + _ROUNDING_COST) / self._tokens)
        if isinstance(self._task.train, Blocks):
            count = min(count, len(self._task.train) * recipe.data.context // self._tokens)
        if count < usual:
            logger.info("%.0f tokens/s in training: no time for layers one by one", rate)
            return 0
        logger.info(
            "%.0f tokens/s in training: layers are trained one by one on %d tokens",
            rate, count * self._tokens,
        )  # fmt: skip
        return count

    @property
    def _left(self) -> float:
        """Seconds, the same in all processes."""
        spent = processes.broadcast_from_first(lambda: time.monotonic() - self._begun)
        return 60 * self._minutes - spent

    def _decide(
        self, recipe: Recipe, model: nn.Module, metrics: dict[str, Any], listener: Listener | None
    ) -> dict[str, Any]:
        """Steps, learning rate, and the KL of each trial by its rate."""
        nothing = {"steps": 0, "trials": {}}
        lost = self._task.gap(metrics["qat_start"], metrics["float"])
        begun = time.monotonic()
        before = self._run.result("start_divergence", lambda: self._task.divergence(model))
        if lost <= NOT_NEEDED[0] and before <= NOT_NEEDED[1]:
            logger.info(
                "training is not needed: the start is within 0.5%% of float, KL %.4f", before
            )
            return nothing
        start = self._run.folder / _START
        share = len(self._task.valid) / len(self._task.apart)
        evaluation = (time.monotonic() - begun) * share / 2  # of one model
        if processes.is_first():
            keep_state(model, start)
        processes.wait()
        seconds = _SLACK * step_seconds(model, self._task, recipe)
        load_state(model, start)
        steps = int((self._left - 2 * evaluation) / seconds)
        count = int(_TRIAL_SHARE * steps)
        if steps < _LEAST_STEPS:
            logger.info("no time is left to train all layers together")
            return nothing
        logger.info(
            "%.1f minutes are left: two trials of %d steps, then training", self._left / 60, count
        )
        trials: dict[str, float] = {}
        rule = with_rates(recipe.train, max(lost, before), self._tokens).learning_rate
        assert rule is not None
        for rate in (float(f"{share * rule:.2e}") for share in SHARES):
            seconds = _SLACK * self._try(recipe, model, rate, max(count, _LEAST_TRIAL), listener)
            trials[f"{rate:g}"] = self._task.divergence(model)
            load_state(model, start)
        best = min(trials, key=lambda name: trials[name])
        told = ", ".join(f"{trials[name]:.4f} at {name}" for name in trials)
        logger.info("KL to float on text kept apart: %.4f before, %s", before, told)
        if trials[best] >= before:
            logger.info("training would not bring the model nearer to float")
            return {**nothing, "trials": trials}
        steps = max(int((self._left - 2 * evaluation) / seconds), 1)
        return {"steps": steps, **_rates(float(best)), "trials": trials}

    def _try(
        self, recipe: Recipe, model: nn.Module, rate: float, steps: int, listener: Listener | None
    ) -> float:
        """Train a few steps in place; returns the seconds of one."""
        from edgeqat.train.trainer import QATTrainer  # seconds: not before what may be refused

        update = {**_rates(rate), "steps": steps, "warmup_steps": steps // 4}
        train = with_rates(recipe.train.model_copy(update=update), 0.0)
        trial = recipe.model_copy(update={"train": train})
        begun = time.monotonic()
        data, objective = teaching(self._task, trial, keep_exact=True)
        asked = time.monotonic() - begun  # the teacher, where its answers are kept
        trainer = QATTrainer(model, trial, data, objective, "trial", listener=listener)
        trainer.run()
        return (asked + float(trainer.metrics()["seconds"])) / steps


def _in_parts(recipe: Recipe, model: nn.Module) -> dict[str, Any]:
    """Fields that let the same step of a large model take less memory: smaller micro-batches, and
    moments in bf16.
    """
    train = recipe.train
    if sum(p.numel() for p in model.parameters()) < _LARGE:
        return {}
    size = max(_PART_TOKENS // recipe.data.context, 1)
    fields: dict[str, Any] = {}
    if train.batch_size > size and train.batch_size % size == 0:
        fields = {"batch_size": size, "accumulation": train.accumulation * train.batch_size // size}
    is_open = "bf16_states" not in train.model_fields_set
    if is_open and train.optimizer == "adamw" and train.beta2 < LARGEST_BF16_BETA:
        fields["bf16_states"] = True
    return fields


def _rates(rate: float) -> dict[str, float]:
    """Both learning rates: scales move a group of weights each, and stand far less."""
    return {"learning_rate": rate, "scale_learning_rate": float(f"{_SCALE_SHARE * rate:.2e}")}
