"""Does a subset's relative entropy tell the accuracy reached from it? (QuaRC 2507.17768: Spearman
0.867)

usage: python eval/entropy_correlation.py prepare WEIGHTS.safetensors --data CIFAR100 --out FOLDER
       python eval/experiments.py WEIGHTS.safetensors --list FOLDER/runs.yaml --out FOLDER
       python eval/entropy_correlation.py correlate --out FOLDER

`prepare` scores every training image by the relative entropy between the float model and the
quantized, untrained one, ranks the images within their class, and draws one subset from each of as
many bands of ranks: every class has equally many images in every subset. The runs train on each
subset alone, with the same steps. `correlate` prints subsets, accuracies and Spearman's rho.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import torch
import yaml
from scipy.stats import spearmanr
from torch import Tensor

from edgeqat.coreset import index_file, select
from edgeqat.errors import EdgeQATError, UsageError
from edgeqat.pipeline.load import load_task, with_data_root
from edgeqat.pipeline.preparation import prepared
from edgeqat.pipeline.sampling import recalibrate_batch_norms, selection_of
from edgeqat.recipe import files as recipes

GROUP = "entropy"


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("command", choices=("prepare", "correlate"))
    parser.add_argument("weights", nargs="?", help="float weights (only for prepare)")
    parser.add_argument("--data", help="folder of images (only for prepare)")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--recipe", default="mobilenetv2-cifar100")
    parser.add_argument("--scheme", default="w2a32")
    parser.add_argument("--subsets", type=int, default=12)
    parser.add_argument("--share", type=float, default=0.01)
    parser.add_argument("--epochs", type=int, default=30)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=2)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    if options.command == "correlate":
        if not (options.out / "entropies.json").is_file():
            parser.error(f"--out: '{options.out}' holds no subsets; run prepare first")
        print(correlate(options.out))
    elif options.weights is None or options.data is None:
        parser.error("prepare: name the float weights and --data")
    else:
        try:
            prepare(options)
        except EdgeQATError as error:
            parser.exit(2, f"error: {error}\n")


def prepare(options: argparse.Namespace) -> None:
    """Write the subsets, their mean relative entropies and the list of runs."""
    values = {
        "quant.scheme": options.scheme,
        "model.weights": options.weights,
        "data.root": options.data,
        "coreset": {"share": options.share, "selector": "res"},
        "seed": options.seed,
    }
    recipe = with_data_root(recipes.load(options.recipe, values))
    task = load_task(recipe)
    student = prepared(task, recipe, recipe.quant)
    recalibrate_batch_norms(task, recipe, student)
    selection, _ = selection_of(task, recipe, student)
    entropy, _ = selection.score(student, 0.0, options.seed)
    samples = task.samples(recipe)
    assert samples.classes is not None, "subsets are balanced over classes"
    options.out.mkdir(parents=True, exist_ok=True)
    told = {"samples": len(samples), "data": samples.fingerprint()}
    rows, means = {}, {}
    generator = torch.Generator().manual_seed(options.seed)
    each = per_class(samples.classes, options.share, options.subsets)
    for number, index in enumerate(
        bands(entropy, samples.classes, options.subsets, each, generator)
    ):
        name, file = f"band{number:02}", options.out / f"band{number:02}.json"
        index_file.write(file, index, told)
        rows[name] = {"coreset": str(file.resolve())}
        means[name] = entropy[index].mean().item()
    common = {"train.epochs": options.epochs, "distill.weight": 1.0, "correct.weight": 0.0}
    group = {"name": GROUP, "schemes": [options.scheme], "seeds": [options.seed], "rows": rows}
    listed = {
        "recipe": options.recipe,
        "common": common,
        "groups": [{**group, "against": next(iter(rows))}],
    }
    (options.out / "runs.yaml").write_text(yaml.safe_dump(listed, sort_keys=False))
    (options.out / "entropies.json").write_text(json.dumps(means, indent=1) + "\n")
    print("\n".join(f"{name} {mean:.4f} nats" for name, mean in means.items()))


def per_class(classes: Tensor, share: float, subsets: int) -> int:
    """Images of each class in a subset of a share of all; refuses what the classes cannot give."""
    counts = torch.bincount(classes)
    each, most = select.size(len(classes), share) // len(counts), int(counts.min()) // subsets
    if not 1 <= each <= most:
        raise UsageError(
            f"--share: {share:g} takes {each} images of each class, between 1 and {most} can be "
            "had; choose another, or other --subsets"
        )
    return each


def bands(
    scores: Tensor, classes: Tensor, count: int, each: int, generator: torch.Generator
) -> list[Tensor]:
    """`count` ascending index tensors: of every class `each` images, drawn from one band of its
    images ranked by score.
    """
    found: list[list[Tensor]] = [[] for _ in range(count)]
    for label in classes.unique():
        own = (classes == label).nonzero()[:, 0]
        ranked = own[scores[own].argsort(stable=True)]
        for into, band in zip(found, ranked.tensor_split(count), strict=True):
            into.append(band[torch.randperm(len(band), generator=generator)[:each]])
    return [torch.cat(parts).sort().values for parts in found]


def correlate(out: Path) -> str:
    """Markdown rows of the finished subsets, and Spearman's rho."""
    means = json.loads((out / "entropies.json").read_text(encoding="utf-8"))
    pairs = []
    for name, mean in means.items():
        for file in sorted(out.glob(f"{GROUP}-*-{name}-s*/metrics.json")):
            metrics = json.loads(file.read_text(encoding="utf-8"))
            pairs.append((name, mean, metrics["qat"]["top1"]))
    rows = [f"| {name} | {mean:.4f} | {top:.2f} |" for name, mean, top in pairs]
    head = "| subset | relative entropy, nats | top-1 |\n|---|---|---|"
    text = "\n".join([head, *rows])
    if len(pairs) < 3:
        return text
    found = spearmanr([mean for _, mean, _ in pairs], [top for _, _, top in pairs])
    return f"{text}\nSpearman {found.statistic:+.3f} (p {found.pvalue:.2g}), {len(pairs)} subsets"


if __name__ == "__main__":
    main()
