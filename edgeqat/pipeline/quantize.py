"""The main job: load -> prepare -> PTQ row -> QAT -> convert -> write -> verify, into one packed
folder.

Every number of the QAT row comes from the packed folder, loaded back. The folder is whole or
absent; until it is whole, the run folder beside it (pipeline/run) is where the run continues.
"""

from __future__ import annotations

import gc
import logging
import time
from pathlib import Path
from typing import Any

from torch import nn

from edgeqat import checkpoint
from edgeqat.checkpoint import METRICS
from edgeqat.evaluate.average_bits import WidthMeter, average_bits
from edgeqat.hf import float_model, lowrank, packed_folder
from edgeqat.hf.stored import float_size, size_by_kind
from edgeqat.memory import peak_rss_bytes
from edgeqat.nn import convert
from edgeqat.output import json_text
from edgeqat.pipeline.baseline import float_same_steps, float_score
from edgeqat.pipeline.budget import Budget
from edgeqat.pipeline.load import load_task, with_data_root
from edgeqat.pipeline.preparation import format_score, prepared, start_of, trainable
from edgeqat.pipeline.run import Run, identity, open_run
from edgeqat.pipeline.sampling import coreset_of, recalibrate_batch_norms, with_steps
from edgeqat.pipeline.self_text import with_self_text
from edgeqat.pipeline.snapshots import Snapshots
from edgeqat.pipeline.start import check_extras, check_start
from edgeqat.pipeline.task import Score, Task
from edgeqat.pipeline.teaching import teaching
from edgeqat.pipeline.widths import with_widths
from edgeqat.recipe import files as recipes
from edgeqat.recipe.files import RESOLVED
from edgeqat.recipe.recipe import Recipe
from edgeqat.report import card, snapshot
from edgeqat.report import page as pages
from edgeqat.report.files import FILE, read_records
from edgeqat.train import processes, sharding
from edgeqat.train.callbacks import Listener
from edgeqat.train.optim import with_rates

logger = logging.getLogger(__name__)

ADAPTER = "adapter"


def quantize(
    recipe: Recipe, output: Path, overwrite: bool = False, listener: Listener | None = None
) -> dict[str, Any]:
    """Run a recipe and write the packed folder `output`, or continue where the same run stopped;
    returns what metrics.json holds.

    Raises an EdgeQATError in one line for anything a user can cause.
    """
    begun = time.monotonic()
    name, recipe = recipe.model.name, with_data_root(recipe)
    check_start(output, overwrite)
    check_extras(recipe)
    recipe = with_self_text(recipe)
    task = load_task(recipe)
    recipe = with_widths(with_steps(recipe, task), task)
    logger.info("%s at %s: %s", name, recipe.quant.scheme, task.describe())
    if recipe.quant.adaptive.share is not None:
        logger.info("%s", recipe.quant.adaptive.words(recipe.quant.bits()))
    model_hash = float_model.fingerprint(recipe.model.name, recipe.model.weights)
    wanted = identity("quantize", recipe, model_hash, task.train, task.valid)
    with open_run(output, overwrite, wanted) as run:
        done = processes.broadcast_from_first(run.metrics)
        if done is not None:
            return done
        budget = None if recipe.train.minutes is None else Budget(recipe, task, run, begun)
        given = recipe
        if budget is not None:
            recipe = budget.with_blocks(recipe)
        metrics, model = _rows_before(task, recipe, given, run, name)
        if budget is not None:
            recipe = budget.with_training(recipe, model, metrics, listener)
        gap = task.gap(metrics["qat_start"], metrics["float"])
        rates = with_rates(recipe.train, gap, task.step_tokens(recipe))
        recipe = recipe.model_copy(update={"train": rates})
        if recipe.train.compare_float and recipe.train.steps > 0:
            same_steps = float_same_steps(task, recipe, run, listener)
            logger.info("float, trained for the same steps: %s", format_score(same_steps))
            metrics["float_same_steps"] = same_steps
        model = trainable(model, recipe)
        metrics |= train(model, task, recipe, run, listener)
        if budget is not None and recipe.train.steps:
            metrics["kept_training"] = budget.keep_the_better(model)
        if sharding.is_sharded(model):
            whole = trainable(start_of(run, task, recipe), recipe)
            model = sharding.gathered(model, whole)
        if processes.is_first():
            _write_output(model, task, recipe, run, metrics)
    return metrics


def train(
    model: nn.Module, task: Task, recipe: Recipe, run: Run, listener: Listener | None
) -> dict[str, Any]:
    """QAT of a prepared model in place; returns the metrics `train` and, with one, `coreset`."""
    from edgeqat.train.trainer import QATTrainer  # seconds: not before what may be refused

    reselection, cache_seconds = coreset_of(task, recipe, model)
    cache_seconds = run.result("cache_seconds", lambda: cache_seconds)
    data, objective = teaching(task, recipe)
    trainer = QATTrainer(
        model, recipe, data, objective, "qat", run.records, listener, run.checkpoints("qat"),
        reselection,
    )  # fmt: skip
    trainer.run()
    told = trainer.metrics()  # before anything else takes time
    if reselection is not None:
        task.samples(recipe).recalibrate_batch_norms(model)
    selected = trainer.recorder.selection_seconds + cache_seconds
    metrics: dict[str, Any] = {
        "train": {
            **told,
            "selection_seconds": round(selected, 1),
            "peak_rss_bytes": peak_rss_bytes(),
        }
    }
    if reselection is not None:
        metrics["coreset"] = {
            "size": len(reselection.sampler),
            "samples": len(task.samples(recipe)),
            "cache_seconds": round(cache_seconds, 1),
            "selections": reselection.turns,
        }
    return metrics


def _write_output(
    model: Any, task: Task, recipe: Recipe, run: Run, metrics: dict[str, Any]
) -> None:
    """Convert the trained model, write the packed folder, and add what the folder itself gives."""
    with run.finished(metrics) as folder:
        task.bring_back()
        if recipe.train.method == "lowrank":
            lowrank.save_adapters(model, folder / ADAPTER, recipe.model.name)
        device = next(model.parameters()).device
        convert.convert(model)
        metrics["bytes"] = {
            **size_by_kind(model),
            **float_size(task.model),
        }
        task.write(folder, model, recipe.quant)
        snapshots = Snapshots(task, run)
        task.release()
        gc.collect()  # the packed model is unpacked for its evaluation: room for it
        packed: nn.Module = packed_folder.load(folder)
        packed.to(device)
        snapshots.take("qat", packed)
        with WidthMeter(packed, recipe.quant.bits()) as meter:
            metrics["qat"] = task.evaluate(packed)
        if meter.counted:
            metrics["average_bits"] = average_bits(recipe, meter.average_bits())
        if recipe.quant.adaptive.share is not None:
            metrics["adaptive"] = {**recipe.quant.adaptive.model_dump(), **meter.shares()}
        metrics["recovered"] = task.recovered(metrics["float"], metrics["ptq"], metrics["qat"])
        texts = {
            METRICS: json_text(metrics),
            RESOLVED: recipes.dump(recipe),
            "README.md": card.render(metrics, recipe, checkpoint.read_config(folder)),
        }
        data = snapshots.arrays()
        if data is not None:
            snapshot.save(folder / snapshot.FILE, data)
        layers = {name: spec.to_json() for name, spec in convert.packed_specs(model).items()}
        texts[FILE] = pages.page(
            metrics, card.table(metrics), read_records(run.records), layers, texts[RESOLVED], data
        )
        task.seal(folder, model, recipe.quant, texts)


def _rows_before(
    task: Task, recipe: Recipe, given: Recipe, run: Run, name: str
) -> tuple[dict[str, Any], Any]:
    """The rows of the table that need no training, and the model that training starts from; `name`
    is the float model's, as it was given. PTQ calibrates as the recipe `given` says: it needs no
    text to train layers on.
    """
    snapshots = Snapshots(task, run)

    def measured(model: nn.Module, stage: str | None = None) -> Score:
        if stage is not None:
            snapshots.take(stage, model)
        return task.evaluate(model)

    def float_row() -> Score:
        snapshots.take("float", task.model)
        return float_score(task, recipe)

    floating = run.result("float", float_row)
    logger.info("float: %s", format_score(floating))
    plain = recipe.quant.ptq_only()
    if convert.differ(task.model, plain, recipe.quant):
        ptq = run.result("ptq", lambda: measured(prepared(task, given, plain), "ptq"))
        logger.info("PTQ at %s: %s", recipe.quant.scheme, format_score(ptq))
        model = start_of(run, task, recipe)
        start = run.result("qat_start", lambda: measured(model))
        logger.info("the start of training: %s", format_score(start))
    else:
        model = start_of(run, task, recipe)
        ptq = start = run.result("qat_start", lambda: measured(model, "ptq"))
        logger.info("PTQ at %s: %s", recipe.quant.scheme, format_score(ptq))
    settled = recipe.coreset.is_on and recalibrate_batch_norms(task, recipe, model)
    if settled:
        start = run.result("settled", lambda: measured(model))
        logger.info("with batch norms estimated anew, not trained: %s", format_score(start))
    metrics = {
        "scheme": recipe.quant.scheme,
        "model": name,
        "data": task.source(recipe),
        "seed": recipe.seed,
        "float": floating,
        "float_same_steps": None,
        "ptq": ptq,
        "qat_start": start,
        "norms_estimated": settled,
        "rotated": recipe.quant.rotates_anything,
        "compensated": convert.compensates(task.model, recipe.quant),
        "average_bits": average_bits(recipe),
        "evaluation": task.conditions(recipe),
    }
    return metrics, model
