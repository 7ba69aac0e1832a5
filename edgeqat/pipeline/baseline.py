"""The rows of the float model: as it is, and "float, trained for the same steps", so that extra
training is not sold as recovery.

For the second the float model trains with cross-entropy alone on the same blocks, steps and
learning rate. Both depend on nothing of the scheme, so they are kept in a cache (EDGEQAT_CACHE,
default ~/.cache/edgeqat) and shared between runs.
"""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import edgeqat
from edgeqat import cache
from edgeqat.data.text import BlockStream
from edgeqat.hf import float_model
from edgeqat.nn.half import float_copy
from edgeqat.pipeline.run import DRAWS, Run
from edgeqat.pipeline.task import Score, Task
from edgeqat.recipe.recipe import Recipe
from edgeqat.recipe.train import GuideSection
from edgeqat.train import processes, sharding
from edgeqat.train.callbacks import Listener

_ROW = "float_same_steps"


def float_score(task: Task, recipe: Recipe) -> Score:
    """The score of the float model on the held-out data."""
    digest = hashlib.sha256(task.valid.fingerprint().encode())
    digest.update(float_model.fingerprint(recipe.model.name, recipe.model.weights).encode())
    told = [edgeqat.__version__, task.metric.name, task.conditions(recipe)]
    digest.update(json.dumps(told, sort_keys=True).encode())
    file = cache.folder("float") / f"{digest.hexdigest()}.json"
    score = _read(file)
    if score is None:
        score = task.evaluate(task.model)
        text = json.dumps(score)
        cache.keep(file, lambda part: part.write_text(text))
    return score


def float_same_steps(task: Task, recipe: Recipe, run: Run, listener: Listener | None) -> Score:
    """Score of the float model after the run's steps of plain training on all data."""
    file = _cache_file(task, recipe)
    known = processes.broadcast_from_first(lambda: run.known(_ROW) or _read(file))
    if known is None:
        from edgeqat.train.trainer import QATTrainer  # seconds: not before what may be refused

        checkpoints = run.checkpoints("float")
        model = float_copy(task.model)
        plain = recipe.model_copy(update={"guide": GuideSection()})
        trainer = QATTrainer(
            model, recipe, task.train, task.objective(plain, None), "float",
            listener=listener, checkpoints=checkpoints,
        )  # fmt: skip
        trainer.run()
        if sharding.is_sharded(model):
            model = sharding.gathered(model, float_copy(task.model))
        known = run.result(_ROW, lambda: task.evaluate(model))
        if processes.is_first():
            checkpoints.clear()
            if file is not None:
                cache.keep(file, lambda part: part.write_text(json.dumps(known)))
    return known


def _cache_file(task: Task, recipe: Recipe) -> Path | None:
    """Where the result of exactly this training is kept; None for streams, which have no
    fingerprint.
    """
    if isinstance(task.train, BlockStream):
        return None
    digest = hashlib.sha256()
    digest.update(float_model.fingerprint(recipe.model.name, recipe.model.weights).encode())
    digest.update((task.train.fingerprint() + task.valid.fingerprint()).encode())
    train = recipe.train.model_dump(exclude={"save_steps"})
    told = [recipe.seed, train, recipe.data.images.model_dump(), processes.count()]
    told += [edgeqat.__version__, DRAWS]
    digest.update(json.dumps(told, sort_keys=True).encode())
    return cache.folder(_ROW) / f"{digest.hexdigest()}.json"


def _read(file: Path | None) -> Score | None:
    if file is None or not file.is_file():
        return None
    try:
        return json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError):  # damaged: trained once more
        return None
