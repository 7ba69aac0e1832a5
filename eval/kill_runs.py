"""Kill runs at random moments, start them again, and compare them with an undisturbed one.

    python eval/kill_runs.py [--runs 20] [--seed 0] [--json FILE] [options of `edgeqat quantize`]

Every run gets one to three SIGKILLs: anywhere, inside a save of a checkpoint, or while the output
is put together; then the same command finishes it. Results must agree to 1e-6 (times excepted),
the packed weights byte by byte, and nothing else may be left. Exit code 0 when all do.

Processes are forked from a server that has imported everything: a start takes no second.
"""

from __future__ import annotations

import argparse
import contextlib
import glob
import hashlib
import json
import math
import multiprocessing
import os
import random
import shutil
import sys
import tempfile
import time
from pathlib import Path

TINY = [
    "--model", "demo", "--w4a8kv4", "--steps", "18", "--set", "data.context=64", "--set",
    "data.valid_blocks=4", "--set", "train.batch_size=2", "--set", "train.save_steps=2", "--set",
    "train.log_steps=3",
]  # fmt: skip
PLACES = {"anywhere": None, "saving": "*.run/*/.step-*", "packing": "*.run/.out.*"}
TIMES = ("seconds", "tokens_per_second", "peak_rss_bytes")


def work(folder: Path, arguments: list[str]) -> None:
    """One `edgeqat quantize` in its own process; what it says goes to a log."""
    os.environ["EDGEQAT_CACHE"] = str(folder / "cache")  # no run gets its float row from another
    import torch

    from edgeqat.cli import run

    torch.set_num_threads(1)
    with (
        open(folder / "log", "a", encoding="utf-8") as log,
        contextlib.redirect_stdout(log),
        contextlib.redirect_stderr(log),
    ):
        sys.exit(run(["quantize", *arguments, "--output", str(folder / "out")]))


def killed(process, folder: Path, place: str, choose: random.Random, seconds: float) -> bool:
    """Kill a run at a moment of the given kind; whether it was still running."""
    pattern = PLACES[place]
    if pattern is None:
        process.join(choose.uniform(0, seconds))
    else:
        seen = choose.randint(1, 6) if place == "saving" else 1
        while process.is_alive() and seen:
            if glob.glob(pattern, root_dir=folder):
                seen -= 1
                while seen and process.is_alive() and glob.glob(pattern, root_dir=folder):
                    time.sleep(0.0005)
        time.sleep(choose.uniform(0, 0.03))
    alive = process.is_alive()
    process.kill()
    process.join()
    return alive


def disturbed(context, folder: Path, arguments: list[str], seed: int, seconds: float) -> list[str]:
    """Kill one run one to three times and let it finish; where it was when it was killed."""
    choose = random.Random(seed)
    moments = []
    for number in range(choose.randint(1, 3)):
        place = list(PLACES)[(seed + number) % len(PLACES)]
        process = context.Process(target=work, args=(folder, arguments))
        process.start()
        if not killed(process, folder, place, choose, seconds):  # it was done before
            if moments:
                break
            shutil.rmtree(folder / "out")
            return disturbed(context, folder, arguments, seed + 1000, 0.8 * seconds)
        hit = [
            name
            for name, pattern in PLACES.items()
            if pattern and glob.glob(pattern, root_dir=folder)
        ]
        moments.append(hit[0] if hit else "between")
    if not (folder / "out").exists():
        process = context.Process(target=work, args=(folder, arguments))
        process.start()
        process.join()
    return moments


def results(folder: Path) -> dict:
    """What must not depend on kills: metrics and records without their times, the weights' hash."""
    out = folder / "out"
    metrics = json.loads((out / "metrics.json").read_text(encoding="utf-8"))
    lines = (out / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    weights = hashlib.sha256((out / "model.safetensors").read_bytes()).hexdigest()
    return {"metrics": metrics, "records": [json.loads(s) for s in lines], "weights": weights}


def same(one, two) -> bool:
    """Equal, numbers to 1e-6, times left out."""
    if isinstance(one, dict) and isinstance(two, dict):
        return one.keys() == two.keys() and all(
            same(one[key], two[key]) for key in one if key not in TIMES
        )
    if isinstance(one, list) and isinstance(two, list):
        return len(one) == len(two) and all(same(a, b) for a, b in zip(one, two, strict=True))
    if isinstance(one, float) and isinstance(two, float):
        return math.isclose(one, two, rel_tol=1e-6)
    return one == two


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--runs", type=int, default=20)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", type=Path)
    chosen, arguments = parser.parse_known_args()
    arguments = arguments or TINY
    os.environ["PYTHONWARNINGS"] = "ignore"  # the semaphores of killed processes
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["edgeqat.cli", "edgeqat.pipeline.quantize"])
    rows = []
    with tempfile.TemporaryDirectory(prefix="edgeqat-kill-") as name:
        whole = Path(name) / "whole"
        whole.mkdir()
        for _ in range(2):  # the first one waits for the server's imports
            shutil.rmtree(whole)
            whole.mkdir()
            start = time.perf_counter()
            process = context.Process(target=work, args=(whole, arguments))
            process.start()
            process.join()
            seconds = time.perf_counter() - start
        if process.exitcode:
            print((whole / "log").read_text(encoding="utf-8"), file=sys.stderr)
            return 1
        expected = results(whole)
        print(f"undisturbed: {seconds:.1f} s, {expected['metrics']['qat']}", flush=True)
        for number in range(chosen.runs):
            folder = Path(name) / f"run-{number}"
            folder.mkdir()
            seed = chosen.seed + number
            moments = disturbed(context, folder, arguments, seed, seconds)
            left = sorted(path.name for path in folder.iterdir())
            equal = (folder / "out").exists() and same(results(folder), expected)
            clean = set(left) <= {"cache", "log", "out"}
            rows.append({"seed": seed, "killed": moments, "equal": equal, "clean": clean})
            verdict = ("equal" if equal else "DIFFERENT") + ("" if clean else f", left {left}")
            print(f"run {number:2d}: killed {', '.join(moments) or 'never'}: {verdict}", flush=True)
            if not (equal and clean):
                print((folder / "log").read_text(encoding="utf-8"), file=sys.stderr)
    kills = [moment for row in rows for moment in row["killed"]]
    good = sum(row["equal"] and row["clean"] for row in rows)
    inside = {place: kills.count(place) for place in ("saving", "packing")}
    print(
        f"{good} of {len(rows)} runs equal the undisturbed one; {len(kills)} kills, "
        f"{inside['saving']} inside a save, {inside['packing']} while packing"
    )
    if chosen.json:
        chosen.json.write_text(json.dumps({"runs": rows, "kills": inside}, indent=2) + "\n")
    return 0 if good == len(rows) else 1


if __name__ == "__main__":
    sys.exit(main())
