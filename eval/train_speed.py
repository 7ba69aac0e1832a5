"""Speed and memory of a training step with random weights: float, float + teacher forward, QAT.

usage: python eval/train_speed.py --shape llama-58m|tinyllama-1.1b [--scheme w4a8kv4] [--json FILE]

Each row runs in a process of its own, so that its peak RSS is its own. The recipe's defaults apply;
--set changes them (--set train.bf16_states=true).
"""

from __future__ import annotations

import argparse
import copy
import json
import subprocess
import sys
import time

ROWS = ("float", "float_and_teacher", "qat")


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--shape", default="llama-58m", help="shape of edgeqat/hf/shapes.py")
    parser.add_argument("--scheme", default="w4a8kv4")
    parser.add_argument("--batch", type=int, default=8, help="sequences per step")
    parser.add_argument("--context", type=int, default=128, help="tokens per sequence")
    parser.add_argument("--steps", type=int, default=6, help="timed steps; the fastest counts")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rows", nargs="+", default=list(ROWS), choices=ROWS)
    parser.add_argument("--set", action="append", default=[], help="recipe field, a.b=c")
    parser.add_argument("--json", help="file for the result")
    parser.add_argument("--child", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.child:
        print(json.dumps(measure(options, options.child)))
        return
    rows = {row: _in_a_process(row) for row in options.rows}
    for name, row in rows.items():
        print(
            f"{name:18} {row['tokens_per_second']:8.0f} tokens/s"
            f"  peak {row['peak_rss_bytes'] / 1e9:5.2f} GB"
        )
    if {"float_and_teacher", "qat"} <= rows.keys():
        ratio = rows["float_and_teacher"]["tokens_per_second"] / rows["qat"]["tokens_per_second"]
        print(f"QAT takes {ratio:.2f}x the time of float training + teacher forward")
    if options.json:
        with open(options.json, "w", encoding="utf-8") as file:
            json.dump(rows, file, indent=2)


def _in_a_process(row: str) -> dict[str, float]:
    command = [sys.executable, *sys.argv, "--child", row]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        sys.exit(done.stderr)
    return json.loads(done.stdout.splitlines()[-1])


def measure(options: argparse.Namespace, row: str) -> dict[str, float]:
    """Tokens per second of the fastest step and the process's peak RSS."""
    from edgeqat.runtime import native

    native.keep_freed_memory()  # before torch
    import torch

    from edgeqat import recipe as recipes
    from edgeqat.hf.model import prepare
    from edgeqat.hf.shapes import random_model
    from edgeqat.pipeline.quantize import peak_rss_bytes
    from edgeqat.train.objective import Objective
    from edgeqat.train.optim import make_optimizer, with_rates

    torch.set_num_threads(options.threads)
    values = dict(recipes.parse_set(entry) for entry in options.set)
    recipe = recipes.load(None, {**values, "quant.scheme": options.scheme})
    model = random_model(options.shape)
    teacher = None if row == "float" else copy.deepcopy(model)
    if row == "qat":
        prepare(model, quant=recipe.quant)
    distill = recipe.distill.model_copy(update={"weight": 1.0 if row == "qat" else 0.0})
    objective = Objective(distill, teacher)
    optimizer = make_optimizer(model.train(), with_rates(recipe.train, 0.01))
    shape = (options.steps + 1, options.batch, options.context)
    ids = torch.randint(0, model.config.vocab_size, shape)
    fastest = float("inf")
    for batch in ids:
        start = time.perf_counter()
        if row == "float_and_teacher":
            with torch.no_grad():
                teacher(input_ids=batch, use_cache=False)
        objective(model, batch)["loss"].backward()
        optimizer.step()
        optimizer.zero_grad()
        fastest = min(fastest, time.perf_counter() - start)
    return {
        "tokens_per_second": options.batch * options.context / fastest,
        "peak_rss_bytes": peak_rss_bytes(),
    }


if __name__ == "__main__":
    main()
