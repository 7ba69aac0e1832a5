"""QATTrainer: the Hugging Face Trainer with our objective, optimizer groups and records. The only
training loop.

Language models and image classifiers differ in their data and their objective only; float models
train with it too (an objective without teacher). Quantizers compute in float32 outside
autocast by themselves; `bf16` turns on autocast for everything else, on CPU and GPU.

With `checkpoints` a stage that stopped continues at its last one, to the same result: latent
weights, scales and buffers (safetensors), optimizer, scheduler and generators (the Trainer's own
torch files, which it reads with weights_only), the data position (the step: the order follows from
the seed), the coreset in use and the sums of the record in the making.
"""

from __future__ import annotations

import json
import logging
import math
import shutil
import tempfile
import weakref
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor
from torch.utils.data import Sampler
from transformers import Trainer, TrainerState, TrainingArguments
from transformers.trainer_callback import PrinterCallback, ProgressCallback

from edgeqat.checkpoint import WEIGHTS, read_tensors, write_tensors
from edgeqat.data.images import Images
from edgeqat.data.text import Blocks, BlockStream
from edgeqat.errors import Interrupted, TrainingError
from edgeqat.nn.precision import uses_bf16
from edgeqat.recipe.recipe import Recipe
from edgeqat.seeds import mixed
from edgeqat.train import processes
from edgeqat.train.callbacks import Listener, Recorder
from edgeqat.train.checkpoints import Checkpoints
from edgeqat.train.diagnosis import Diagnosis
from edgeqat.train.gradients import free_gradients, keep_gradients
from edgeqat.train.interruption import Interruption
from edgeqat.train.objective import Objective
from edgeqat.train.optim import make_optimizer
from edgeqat.train.sample_choice import SampleChoice
from edgeqat.train.thresholds import Thresholds

logger = logging.getLogger(__name__)

STATE = "trainer_state.json"
PROGRESS = "progress.json"
_SCHEDULES = {"cosine": "cosine", "linear": "linear", "constant": "constant_with_warmup"}


def training_arguments(recipe: Recipe, folder: str, bf16: bool) -> TrainingArguments:
    """The Trainer's arguments of a recipe."""
    train = recipe.train
    arguments = TrainingArguments(
        output_dir=folder,
        max_steps=train.steps,
        per_device_train_batch_size=train.batch_size,
        gradient_accumulation_steps=train.accumulation,
        learning_rate=train.learning_rate or 0.0,  # the optimizer's groups carry the real ones
        lr_scheduler_type=_SCHEDULES[train.schedule],
        warmup_steps=train.warmup_steps,
        max_grad_norm=train.max_grad_norm,
        bf16=bf16,
        **_checkpointing(train.gradient_checkpointing),
        use_cpu=not torch.cuda.is_available(),
        logging_steps=train.log_steps,
        logging_nan_inf_filter=False,
        save_strategy="steps" if train.save_steps else "no",
        save_steps=train.save_steps or 1,
        report_to=[],
        disable_tqdm=True,
        remove_unused_columns=False,
        dataloader_pin_memory=False,
        seed=recipe.seed,
        data_seed=recipe.seed and mixed(recipe.seed),  # a pass is added: 0, 1, 2 share orders
    )
    arguments._n_gpu = min(arguments.n_gpu, 1)  # more of them need torchrun, not nn.DataParallel
    return arguments


def _checkpointing(wanted: bool) -> dict[str, Any]:
    """Arguments of gradient checkpointing, under the name this transformers has for it."""
    fields = TrainingArguments.__dataclass_fields__
    new, old = "activation_checkpointing", "gradient_checkpointing"  # renamed in 5.2x
    name = new if new in fields else old
    return {name: True, f"{name}_kwargs": {"use_reentrant": False}} if wanted else {}


class QATTrainer(Trainer):
    """Trains a prepared (or float) causal language model on packed blocks, or a classifier on
    images; with `reselection`, on the coreset it chooses.
    """

    def __init__(
        self,
        model: nn.Module,
        recipe: Recipe,
        data: Blocks | BlockStream | Images,
        objective: Objective,
        stage: str = "qat",
        metrics_path: Path | None = None,
        listener: Listener | None = None,
        checkpoints: Checkpoints | None = None,
        reselection: SampleChoice | None = None,
    ) -> None:
        if checkpoints is None:
            train = recipe.train.model_copy(update={"save_steps": 0})
            recipe = recipe.model_copy(update={"train": train})
        self.stage = stage
        self.checkpoints = checkpoints
        self.reselection = reselection
        self.interruption = Interruption()
        self.recipe: Recipe = recipe
        self.objective: Objective = objective
        folder = tempfile.mkdtemp(prefix="edgeqat-")  # the Trainer insists on a place
        self._cleanup = weakref.finalize(self, shutil.rmtree, folder, ignore_errors=True)
        self._sums: dict[str, Tensor] = {}
        self._count = 0
        super().__init__(
            model=model,
            args=training_arguments(recipe, folder, uses_bf16(recipe.train.bf16, model)),
            train_dataset=data,
            data_collator=_collate,
        )
        self.model_accepts_loss_kwargs = False  # the Trainer divides by accumulation steps
        self.remove_callback(PrinterCallback)
        self.remove_callback(ProgressCallback)
        if objective.teacher is not None:
            objective.teacher.to(self.args.device)
        self.recorder = Recorder(stage, *self._per_step(data), metrics_path, listener)
        self.add_callback(self.recorder)
        self.add_callback(self.interruption)
        self.add_callback(Thresholds())
        self.diagnosis = Diagnosis()
        self.add_callback(self.diagnosis)
        if reselection is not None:
            reselection.recorder = self.recorder
            self.add_callback(reselection)

    def _get_train_sampler(self, train_dataset: Any = None) -> Sampler | None:
        if self.reselection is not None:
            return self.reselection.sampler
        return super()._get_train_sampler(train_dataset)

    def metrics(self) -> dict[str, Any]:
        """What metrics.json says of training: steps, tokens or samples per second, seconds."""
        steps, seconds = self.state.global_step, self.recorder.seconds
        return {
            "steps": steps,
            self.recorder.rate: round(steps * self.recorder.per_step / seconds, 1),
            "seconds": round(seconds, 1),
        }

    def _per_step(self, data: Blocks | BlockStream | Images) -> tuple[float, str]:
        """Tokens or samples of a step, on average over a pass, and which of the two."""
        train = self.recipe.train
        samples: float = train.batch_size * train.accumulation * self.args.world_size
        if not isinstance(data, BlockStream):
            total = len(data if self.reselection is None else self.reselection)
            samples = total / -(-total // int(samples))  # the last batch is smaller
        if data.unit == "tokens":
            samples *= self.recipe.data.context
        return samples, data.unit

    def create_optimizer(self, *_: Any) -> torch.optim.Optimizer:
        if self.optimizer is None:
            model = cast(nn.Module, self.model)
            self.optimizer = make_optimizer(model, self.recipe.train)
            if self.args.gradient_accumulation_steps > 1 and self.args.world_size == 1:
                keep_gradients(model)
        return self.optimizer

    def compute_loss(
        self,
        model: nn.Module,
        inputs: dict[str, Tensor],
        return_outputs: bool = False,
        num_items_in_batch: Tensor | int | None = None,
    ) -> Tensor:
        kind = self.args.device.type  # accelerate's autocast covers the student alone
        with torch.autocast(kind, torch.bfloat16, enabled=self.args.bf16):
            terms = self.objective(model, inputs, step=self.state.global_step)
        loss = terms["loss"]
        self._check_finite("loss", loss.item())
        for name, value in terms.items():
            self._sums[name] = self._sums.get(name, 0.0) + value.detach().float()
        self._count += 1
        return loss

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        if "loss" in logs and self._count:
            means = {name: total / self._count for name, total in self._shared_sums().items()}
            logs = {**logs, **means}
            self._sums, self._count = {}, 0
        super().log(logs, start_time)

    def run(self) -> None:
        """Train up to recipe.train.steps optimizer steps, from the last checkpoint if there is one;
        zero steps do nothing.

        Raises Interrupted after Ctrl-C or SIGTERM, when the step in hand is done and saved.
        """
        steps = self.recipe.train.steps
        checkpoint = (
            processes.broadcast_from_first(self.checkpoints.latest) if self.checkpoints else None
        )
        try:
            if checkpoint is not None:
                logger.debug("%s: continuing at step %d of %d", self.stage, checkpoint[0], steps)
                self._load_progress(checkpoint[1])
            if checkpoint is not None and checkpoint[0] >= steps:
                self._load_from_checkpoint(str(checkpoint[1]))
                self.state = TrainerState.load_from_json(str(checkpoint[1] / STATE))
            elif steps > 0:
                with self.interruption:
                    self.train(resume_from_checkpoint=str(checkpoint[1]) if checkpoint else None)
        finally:
            self._cleanup()
            free_gradients(cast(nn.Module, self.model))
        if self.interruption.requested:
            raise Interrupted(f"interrupted after step {self.state.global_step} of {steps}")

    def _shared_sums(self) -> dict[str, float]:
        """Sums of the loss terms since the last record, their mean over all processes."""
        if not self._sums:
            return {}
        sums = self.accelerator.reduce(torch.stack(list(self._sums.values())), "mean")
        return dict(zip(self._sums, sums.tolist(), strict=True))

    def _clip_grad_norm(self, model: nn.Module) -> Tensor:
        norm = super()._clip_grad_norm(model)
        whole = norm.full_tensor() if isinstance(norm, DTensor) else norm
        self._check_finite("gradient", float(whole))
        return norm

    def _check_finite(self, what: str, value: float) -> None:
        """Stop before anything that is not finite reaches the weights."""
        if math.isfinite(value):
            return
        last = self.checkpoints.latest() if self.checkpoints else None
        kept = f"; the state of step {last[0]} is kept in '{last[1]}'" if last else ""
        raise TrainingError(
            f"{what}: {value} at step {self.state.global_step + 1}; lower train.learning_rate or "
            f"check the data (a changed recipe needs --overwrite or another --output){kept}"
        )

    def _save_checkpoint(self, model: nn.Module, trial: Any) -> None:
        assert self.checkpoints is not None
        with self.checkpoints.write(self.state.global_step) as folder:
            self.save_model(str(folder))
            self._save_optimizer_and_scheduler(str(folder))
            self._save_rng_state(str(folder))
            progress = {
                "seconds": self.recorder.seconds,
                "selection_seconds": self.recorder.selection_seconds,
                "coreset": None if self.reselection is None else self.reselection.state(),
                "first": self.diagnosis.first,
                "told": self.diagnosis.told,
                "count": self._count,
                "sums": self._shared_sums(),
            }
            if self.args.should_save:
                self.state.save_to_json(str(folder / STATE))
                (folder / PROGRESS).write_text(json.dumps(progress), encoding="utf-8")

    def _load_progress(self, folder: Path) -> None:
        progress = json.loads((folder / PROGRESS).read_text(encoding="utf-8"))
        self.recorder.continue_from(progress["seconds"], progress["selection_seconds"])
        if self.reselection is not None:
            self.reselection.restore(progress["coreset"])
        self.diagnosis.first, self.diagnosis.told = progress["first"], progress["told"]
        self._count = progress["count"]
        self._sums = {name: torch.tensor(total) for name, total in progress["sums"].items()}

    def _save(self, output_dir: str | None = None, state_dict: dict | None = None) -> None:
        if self.args.should_save:
            parts = _tensors(cast(nn.Module, self.model))  # of a sharded model, parts: hence names
            tensors = {name: (state_dict or parts)[name] for name in parts}
            write_tensors(Path(cast(str, output_dir)) / WEIGHTS, tensors)

    @torch.no_grad()
    def _load_from_checkpoint(
        self, resume_from_checkpoint: str, model: nn.Module | None = None
    ) -> None:
        if model is not None:  # sharded: the Trainer wrote files of its own for it
            super()._load_from_checkpoint(resume_from_checkpoint, model)
            return
        stored = read_tensors(Path(resume_from_checkpoint) / WEIGHTS)
        tensors = _tensors(cast(nn.Module, self.model))
        assert set(tensors) == set(stored), "a checkpoint of another model"
        for name, tensor in tensors.items():
            tensor.copy_(stored[name])


def _tensors(model: nn.Module) -> dict[str, Tensor]:
    """Parameters and buffers by name, shared ones once."""
    by_identity = {
        id(t): (name, t) for name, t in reversed(model.state_dict(keep_vars=True).items())
    }
    return dict(by_identity.values())


def _collate(rows: list[dict[str, Tensor]] | dict[str, Tensor]) -> dict[str, Tensor]:
    """A batch: of images it comes whole."""
    if isinstance(rows, dict):
        return rows
    return {name: torch.stack([row[name] for row in rows]) for name in rows[0]}
