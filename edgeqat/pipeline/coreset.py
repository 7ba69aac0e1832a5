"""`edgeqat coreset`: select once, with the untrained student, into a file for `--coreset`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from edgeqat.coreset import index_file
from edgeqat.errors import UsageError
from edgeqat.output import check_file
from edgeqat.pipeline.load import load_task, with_data_root
from edgeqat.pipeline.preparation import prepared
from edgeqat.pipeline.sampling import recalibrate_batch_norms, selection_of
from edgeqat.pipeline.self_text import with_self_text
from edgeqat.recipe.recipe import Recipe
from edgeqat.train import processes


def choose(
    recipe: Recipe, output: Path, overwrite: bool = False, against: str | None = None
) -> dict[str, Any]:
    """Select the recipe's coreset with the untrained student, write it and return its summary;
    `against` is another coreset file, whose overlap is told.

    Raises an EdgeQATError in one line.
    """
    name, recipe = recipe.model.name, with_self_text(with_data_root(recipe))
    check_file(output, overwrite=overwrite, way="choose another --output or add --overwrite")
    section = recipe.coreset
    if section.share is None or section.file is not None:
        raise UsageError("coreset.share: none is given; write for example --coreset 0.01")
    task = load_task(recipe)
    samples = task.samples(recipe)
    before = (
        None if against is None else index_file.read(against, len(samples), samples.fingerprint())
    )
    student = prepared(task, recipe, recipe.quant)
    recalibrate_batch_norms(task, recipe, student)
    selection, seconds = selection_of(task, recipe, student)
    chosen = selection(student, 0.0, 0, before)
    told = {
        "samples": len(samples),
        "data": samples.fingerprint(),
        "model": name,
        "scheme": recipe.quant.scheme,
        "seed": recipe.seed,
        "coreset": section.model_dump(exclude_none=True),
    }
    summary = {**chosen.summary, "cache_seconds": round(seconds, 3)}
    if processes.is_first():
        index_file.write(output, chosen.indices, {**told, "summary": summary})
    return summary
