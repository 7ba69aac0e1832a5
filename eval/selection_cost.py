"""What the selections of a run cost, the float model's cached outputs included, beside scoring with
both models each time.

usage: python eval/selection_cost.py WEIGHTS.safetensors --data CIFAR100 [--images 5000]
                                     [--selections 4] [--threads 2]

Scored are so many training images; the table has seconds for all of them and for a million. Three
ways: the float model once, then the student (what a run does); both models each time, their batch
norms folded as a run folds them; both models each time as they are trained.
"""

from __future__ import annotations

import argparse
import os
import tempfile
import time
from collections.abc import Callable

import torch
from torch import nn

from edgeqat.coreset.samples import Samples
from edgeqat.errors import EdgeQATError
from edgeqat.pipeline.load import load_task, with_data_root
from edgeqat.pipeline.preparation import prepared
from edgeqat.pipeline.sampling import selection_of
from edgeqat.recipe import files as recipes

MILLION = 1_000_000


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("weights", help="float weights")
    parser.add_argument("--data", required=True, help="folder of images")
    parser.add_argument("--recipe", default="mobilenetv2-cifar100-w2a32-1pct-quarc")
    parser.add_argument("--images", type=int, default=5000, help="that are scored")
    parser.add_argument("--selections", type=int, default=4, help="of a run")
    parser.add_argument("--threads", type=int, default=2)
    options = parser.parse_args()
    if options.images < 1 or options.selections < 1:
        parser.error("--images, --selections: give at least 1")
    try:
        compare(options)
    except EdgeQATError as error:
        parser.exit(2, f"error: {error}\n")


def compare(options: argparse.Namespace) -> None:
    """Time the three ways and print the table."""
    torch.set_num_threads(options.threads)
    values = {
        "model.weights": options.weights,
        "data.root": options.data,
        "coreset.balanced": False,
    }
    recipe = with_data_root(recipes.load(options.recipe, values))
    task = load_task(recipe)
    total = len(task.train)
    task.train = task.train.evenly(options.images)
    samples = task.samples(recipe)
    student = prepared(task, recipe, recipe.quant)
    walk(task.model, samples)  # memory is fetched once
    plain = seconds(lambda: [walk(model, samples) for model in (task.model, student)])
    with tempfile.TemporaryDirectory() as folder:
        os.environ["EDGEQAT_CACHE"] = folder  # nothing is known before
        selection, outputs = selection_of(task, recipe, student)
    settling = seconds(lambda: samples.recalibrate_batch_norms(student))
    own = seconds(lambda: selection.score(student, 1.0, 0)) - settling
    each, count = 1 / len(samples), options.selections
    print(f"{len(samples)} images: float model {outputs:.1f} s, student with scores {own:.1f} s,")
    print(f"both models as they are {plain:.1f} s; batch norms of the student {settling:.1f} s")
    print(f"\n| {count} selections of | float model once | both each time | both as they are |")
    print("|---|---|---|---|")
    for images in (total, MILLION):
        ways = [
            outputs + count * own,
            count * (outputs + own),
            count * plain,
        ]
        ways = [images * each * way + count * settling for way in ways]
        cells = [f"{way:.0f} s ({ways[0] / way:.0%})" for way in ways]
        print(f"| {images:,} images | {' | '.join(cells)} |")


@torch.no_grad()
def walk(model: nn.Module, samples: Samples) -> None:
    """The outputs of a model in eval mode, nothing folded."""
    model.eval()
    for index in torch.arange(len(samples)).split(samples.at_once):
        samples.logits(model, index)


def seconds(work: Callable[[], object]) -> float:
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


if __name__ == "__main__":
    main()
