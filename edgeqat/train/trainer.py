"""QATTrainer: the Hugging Face Trainer with our objective, optimizer groups and records. The only
training loop.

Float models train with it too (an objective without teacher). Quantizers compute in float32 outside
autocast by themselves; `bf16` turns on autocast for everything else, on CPU and GPU.
"""

from __future__ import annotations

import math
import shutil
import tempfile
import weakref
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor, nn
from transformers import Trainer, TrainingArguments
from transformers.trainer_callback import PrinterCallback, ProgressCallback

from edgeqat.data.text import Blocks, BlockStream
from edgeqat.errors import TrainingError
from edgeqat.recipe import Recipe
from edgeqat.train.callbacks import Listener, Recorder
from edgeqat.train.objective import Objective
from edgeqat.train.optim import make_optimizer

_SCHEDULES = {"cosine": "cosine", "linear": "linear", "constant": "constant_with_warmup"}


def training_arguments(recipe: Recipe, folder: str) -> TrainingArguments:
    """The Trainer's arguments of a recipe; nothing is saved by the Trainer itself."""
    train = recipe.train
    return TrainingArguments(
        output_dir=folder,
        max_steps=train.steps,
        per_device_train_batch_size=train.batch_size,
        gradient_accumulation_steps=train.accumulation,
        learning_rate=train.learning_rate or 0.0,  # the optimizer's groups carry the real ones
        lr_scheduler_type=_SCHEDULES[train.schedule],
        warmup_steps=train.warmup_steps,
        max_grad_norm=train.max_grad_norm,
        bf16=train.bf16,
        **_checkpointing(train.gradient_checkpointing),
        use_cpu=not torch.cuda.is_available(),
        logging_steps=train.log_steps,
        logging_nan_inf_filter=False,
        save_strategy="no",
        report_to=[],
        disable_tqdm=True,
        remove_unused_columns=False,
        dataloader_pin_memory=False,
        seed=recipe.seed,
        data_seed=recipe.seed,
    )


def _checkpointing(wanted: bool) -> dict[str, Any]:
    """Arguments of gradient checkpointing, under the name this transformers has for it."""
    known = TrainingArguments.__dataclass_fields__
    new, old = "activation_checkpointing", "gradient_checkpointing"  # renamed in 5.2x
    name = new if new in known else old
    return {name: True, f"{name}_kwargs": {"use_reentrant": False}} if wanted else {}


class QATTrainer(Trainer):
    """Trains a prepared (or float) causal language model on packed blocks."""

    def __init__(
        self,
        model: nn.Module,
        recipe: Recipe,
        blocks: Blocks | BlockStream,
        objective: Objective,
        stage: str = "qat",
        metrics_path: Path | None = None,
        listener: Listener | None = None,
    ) -> None:
        self.recipe: Recipe = recipe
        self.objective: Objective = objective
        folder = tempfile.mkdtemp(prefix="edgeqat-")  # the Trainer insists on a place
        self._cleanup = weakref.finalize(self, shutil.rmtree, folder, ignore_errors=True)
        self._sums: dict[str, Tensor] = {}
        self._count = 0
        super().__init__(
            model=model,
            args=training_arguments(recipe, folder),
            train_dataset=blocks,
            data_collator=_stack,
        )
        self.model_accepts_loss_kwargs = False  # the Trainer divides by accumulation steps
        self.remove_callback(PrinterCallback)
        self.remove_callback(ProgressCallback)
        if objective.teacher is not None:
            objective.teacher.to(self.args.device)
        per_step = recipe.data.context * recipe.train.batch_size * recipe.train.accumulation
        per_step *= self.args.world_size
        self.add_callback(Recorder(stage, per_step, metrics_path, listener))

    def create_optimizer(self, *_: Any) -> torch.optim.Optimizer:
        if self.optimizer is None:
            self.optimizer = make_optimizer(cast(nn.Module, self.model), self.recipe.train)
        return self.optimizer

    def compute_loss(
        self,
        model: nn.Module,
        inputs: dict[str, Tensor],
        return_outputs: bool = False,
        num_items_in_batch: Tensor | int | None = None,
    ) -> Tensor:
        terms = self.objective(model, inputs["input_ids"])
        loss = terms["loss"]
        if not math.isfinite(loss.item()):
            step = self.state.global_step + 1
            raise TrainingError(
                f"loss: {loss.item()} at step {step}; lower train.learning_rate or check the data"
            )
        for name, value in terms.items():
            self._sums[name] = self._sums.get(name, 0.0) + value.detach().float()
        self._count += 1
        return loss

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        if "loss" in logs and self._count:
            means = {name: float(total) / self._count for name, total in self._sums.items()}
            logs = {**logs, **means}
            self._sums, self._count = {}, 0
        super().log(logs, start_time)

    def run(self) -> None:
        """Train for recipe.train.steps optimizer steps; zero steps do nothing."""
        try:
            if self.recipe.train.steps > 0:
                self.train()
        finally:
            self._cleanup()


def _stack(rows: list[dict[str, Tensor]]) -> dict[str, Tensor]:
    return {"input_ids": torch.stack([row["input_ids"] for row in rows])}
