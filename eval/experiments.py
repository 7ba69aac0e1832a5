"""The experiment queue: every run of a list, one after the other, each with `edgeqat quantize`.

usage: EDGEQAT_DATA=FOLDER python eval/experiments.py MODEL [--list FILE] [--only PATTERN]
                              [--out FOLDER] [--threads N] [--dry-run] [--table]

MODEL is the float model: a folder, or the .safetensors weights of the list's image model
(--list eval/quarc.yaml).

A finished run is skipped (one with other settings is named), one that was killed continues where it
stopped; so the queue may be stopped and started at will. A finished language model is compared
with the float one on the held-out text (`edgeqat eval --against`, NAME.eval.json). --table prints
what is finished as Markdown: perplexity, log-gap and KL to the float model (mean and sd over
seeds), and how much smaller gap and KL are than those of the group's row `against`, paired by seed;
of images, top-1 and the points it is above that row. KL tells two runs apart where perplexity,
which depends on the few tokens of the held-out text itself, does not.
"""

from __future__ import annotations

import argparse
import fnmatch
import json
import math
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import yaml

LIST = Path(__file__).with_name("experiments.yaml")
RECIPE = "llama-8m-novels"
EDGEQAT = (sys.executable, "-m", "edgeqat.cli")
HEAD = (
    "| run | seeds | perplexity | sd | over float | log-gap | start | bits a / kv | smaller gap "
    "| KL | smaller KL |\n|---|---|---|---|---|---|---|---|---|---|---|"
)
IMAGE_HEAD = (
    "| run | seeds | top-1 | sd | float | PTQ | above | images/s | training s | selection s |\n"
    "|---|---|---|---|---|---|---|---|---|---|"
)


class Run(NamedTuple):
    """One run of the queue."""

    group: str
    scheme: str
    row: str
    seed: int
    against: str
    recipe: str
    settings: dict[str, Any]

    @property
    def family(self) -> str:
        """Its name without the seed."""
        return f"{self.group}-{self.scheme}-{self.row}"

    @property
    def name(self) -> str:
        return f"{self.family}-s{self.seed}"


Cells = Callable[[list[Run], list[dict[str, Any]]], list[str]]  # of a family and its metrics


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("model", nargs="?", help="float model folder (not for --table)")
    parser.add_argument("--list", type=Path, default=LIST, help="YAML list of runs")
    parser.add_argument("--only", default="*", help="pattern of run names, e.g. 'b-*-s0'")
    parser.add_argument("--out", type=Path, default=Path("runs/experiments"))
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--dry-run", action="store_true", help="print what would run")
    parser.add_argument("--table", action="store_true", help="print the table of what is done")
    options = parser.parse_args()
    runs = [run for run in queue(options.list) if fnmatch.fnmatch(run.name, options.only)]
    if options.table:
        print(table(runs, options.out))
        return 0
    if options.model is None:
        parser.error("name the float model's folder")
    failed = []
    for number, run in enumerate(runs, 1):
        state = "done" if (options.out / run.name / "metrics.json").is_file() else "to do"
        if state == "done" and has_others(run, options.out):
            state = f"done with other settings; remove {options.out / run.name}"
            failed.append(run.name)
        print(f"[{number}/{len(runs)}] {run.name}: {state}", flush=True)
        if options.dry_run or state not in ("to do", "done"):
            continue
        if not (state == "done" or execute(run, options)) or not compare(run, options):
            failed.append(run.name)
    if failed:
        print(f"failed: {' '.join(failed)}", file=sys.stderr)
    return 1 if failed else 0


def queue(path: Path) -> Iterator[Run]:
    """All runs of a list, seed by seed, so that a queue that is stopped has whole comparisons."""
    values = yaml.safe_load(path.read_text(encoding="utf-8"))
    seeds = sorted({seed for group in values["groups"] for seed in group["seeds"]})
    for seed in seeds:
        for group in values["groups"]:
            if seed not in group["seeds"]:
                continue
            for scheme in group["schemes"]:
                for row, own in group["rows"].items():
                    settings = {**values.get("common", {}), **group.get("set", {}), **own}
                    chosen = settings.pop("quant.scheme", scheme)
                    settings["quant.scheme"] = chosen if isinstance(chosen, str) else chosen[scheme]
                    recipe = values.get("recipe", RECIPE)
                    yield Run(group["name"], scheme, row, seed, group["against"], recipe, settings)


def command(run: Run, model: str, out: Path) -> list[str]:
    """The `edgeqat quantize` of a run."""
    sets = [f"--set={key}={json.dumps(value)}" for key, value in run.settings.items()]
    given = "--weights" if model.endswith(".safetensors") else "--model"
    return [
        *EDGEQAT, "quantize", given, model, "--recipe", run.recipe,
        "--seed", str(run.seed), "--output", str(out / run.name), *sets,
    ]  # fmt: skip


def execute(run: Run, options: argparse.Namespace) -> bool:
    """Run one. Whether it ended well."""
    options.out.mkdir(parents=True, exist_ok=True)
    (options.out / f"{run.name}.eval.json").unlink(missing_ok=True)  # of a run before
    text = json.dumps(run.settings, indent=1) + "\n"  # first: a queue that is killed leaves the run
    (options.out / f"{run.name}.json").write_text(text, encoding="utf-8")
    return call(command(run, options.model, options.out), run, options)


def compare(run: Run, options: argparse.Namespace) -> bool:
    """Compare a finished language model with the float one, once. Whether that ended well."""
    result = options.out / f"{run.name}.eval.json"
    if result.is_file() or options.model.endswith(".safetensors"):
        return True
    words = ["eval", str(options.out / run.name), "--against", options.model, "--output", result]
    exactly = ["--mode", "one-pass", "--float32", "--threads", str(options.threads)]
    return call([*EDGEQAT, *words, *exactly], run, options)


def call(command: Sequence[str | Path], run: Run, options: argparse.Namespace) -> bool:
    """Start a command; its output goes to a log beside the run's folder. Whether it ended well."""
    environment = {**os.environ, "OMP_NUM_THREADS": str(options.threads)}
    start = time.perf_counter()
    with open(options.out / f"{run.name}.log", "a", encoding="utf-8") as log:
        done = subprocess.run(command, stdout=log, stderr=log, env=environment)
    print(f"    code {done.returncode}, {time.perf_counter() - start:.0f} s", flush=True)
    return done.returncode == 0


def has_others(run: Run, out: Path) -> bool:
    """Whether a finished run was made with other settings, or nobody knows with which."""
    file = out / f"{run.name}.json"
    return not file.is_file() or json.loads(file.read_text(encoding="utf-8")) != run.settings


def table(runs: list[Run], out: Path) -> str:
    """Markdown rows of the finished runs; those with other settings than the list's are named on
    stderr instead.
    """
    files = {run.name: out / run.name / "metrics.json" for run in runs}
    other = [run for run in runs if files[run.name].is_file() and has_others(run, out)]
    for run in other:
        print(f"left out, made with other settings: {files.pop(run.name).parent}", file=sys.stderr)
    found = {
        name: json.loads(file.read_text(encoding="utf-8"))
        for name, file in files.items()
        if file.is_file()
    }
    done = [run for run in runs if run.name in found]
    for name, metrics in found.items():
        metrics["kl"] = held_out_kl(out / f"{name}.eval.json")
    if any("top1" in metrics["float"] for metrics in found.values()):
        return image_table(done, found)
    return text_table(done, found)


def text_table(done: list[Run], found: dict[str, Any]) -> str:
    """Markdown rows of finished runs of a language model."""
    gaps = {name: gap(metrics) for name, metrics in found.items()}

    def cells(own: list[Run], metrics: list[dict[str, Any]]) -> list[str]:
        ppl = [each["qat"]["perplexity"] for each in metrics]
        over = [100 * (math.exp(gaps[run.name]) - 1) for run in own]
        pairs = rivals(own, found)
        paired = [1 - gaps[run.name] / gaps[other] for run, other in pairs]
        nearer = [1 - found[run.name]["kl"] / found[other]["kl"] for run, other in pairs]
        nearer = [share for share in nearer if not math.isnan(share)]
        bits = metrics[0]["average_bits"]
        return [
            *mean_and_sd(ppl),
            f"{statistics.mean(over):+.2f}%",
            f"{statistics.mean(gaps[run.name] for run in own):.4f}",
            f"{statistics.mean(gap(each, 'qat_start') for each in metrics):.4f}",
            f"{bits['activations']:.2f} / {bits['kv']:.2f}",
            spread([100 * value for value in paired]),
            f"{statistics.mean(each['kl'] for each in metrics):.4f}",
            spread([100 * value for value in nearer]),
        ]

    return rows(HEAD, done, found, cells)


def image_table(done: list[Run], found: dict[str, Any]) -> str:
    """Markdown rows of finished runs of an image model."""
    top = {name: metrics["qat"]["top1"] for name, metrics in found.items()}

    def cells(own: list[Run], metrics: list[dict[str, Any]]) -> list[str]:
        above = [top[run.name] - top[other] for run, other in rivals(own, found)]
        trained = [each["train"] for each in metrics]
        return [
            *mean_and_sd([top[run.name] for run in own]),
            f"{metrics[0]['float']['top1']:.2f}",
            f"{metrics[0]['ptq']['top1']:.2f}",
            f"{statistics.mean(above):+.2f}" if above else "-",
            f"{statistics.mean(t['samples_per_second'] for t in trained):.0f}",
            f"{statistics.mean(t['seconds'] for t in trained):.0f}",
            f"{statistics.mean(t['selection_seconds'] for t in trained):.0f}",
        ]

    return rows(IMAGE_HEAD, done, found, cells)


def rows(head: str, done: list[Run], found: dict[str, Any], cells: Cells) -> str:
    """A head and a row for each family: its name, its number of seeds, its cells."""
    lines = [head]
    for family in dict.fromkeys(run.family for run in done):
        own = [run for run in done if run.family == family]
        values = cells(own, [found[run.name] for run in own])
        lines.append("| " + " | ".join([family, str(len(own)), *values]) + " |")
    return "\n".join(lines)


def rivals(own: list[Run], found: dict[str, Any]) -> list[tuple[Run, str]]:
    """Runs with the finished run of the same seed that they are compared with."""
    pairs = [(run, run._replace(row=run.against).name) for run in own if run.row != run.against]
    return [(run, other) for run, other in pairs if other in found]


def mean_and_sd(values: list[float]) -> list[str]:
    """Two cells; the second is `-` for a single value."""
    sd = f"{statistics.stdev(values):.2f}" if len(values) > 1 else "-"
    return [f"{statistics.mean(values):.2f}", sd]


def gap(metrics: dict[str, Any], row: str = "qat") -> float:
    """log ppl - log ppl_float in nats."""
    return math.log(metrics[row]["perplexity"] / metrics["float"]["perplexity"])


def held_out_kl(path: Path) -> float:
    """Mean KL to the float model on the held-out text in nats; NaN before it was measured."""
    if not path.is_file():
        return math.nan
    return float(json.loads(path.read_text(encoding="utf-8"))["kl"]["mean"])


def spread(values: list[float]) -> str:
    """Mean and sd in percent; `-` without values."""
    if not values:
        return "-"
    sd = f" (sd {statistics.stdev(values):.0f})" if len(values) > 1 else ""
    return f"{statistics.mean(values):+.0f}%{sd}"


if __name__ == "__main__":
    sys.exit(main())
