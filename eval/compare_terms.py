"""A loss term of runs that saw the same batches, side by side: means over every so many steps.

usage: python eval/compare_terms.py FOLDER FOLDER ... [--term kl] [--every 100]

Runs with the same seed, data, batch size and number of steps draw the same batches, so that
the difference of their terms is far less noisy than that of their held-out perplexities
(docs/log/training.md).
FOLDER is what `edgeqat quantize` wrote, or its FOLDER.run while it trains.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from edgeqat.checkpoint import RECORDS
from edgeqat.report.files import read_records
from edgeqat.report.page import series


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("folders", nargs="+", type=Path)
    parser.add_argument("--term", default="kl", help="name of a loss term: loss, kl, ce, ...")
    parser.add_argument(
        "--every", type=int, default=100, help="steps of a row; the last one ends with the run"
    )
    options = parser.parse_args()
    for folder in options.folders:
        if not (folder / RECORDS).is_file():
            parser.error(f"folders: '{folder}' holds no {RECORDS}; name runs of edgeqat quantize")
    if options.every < 1:
        parser.error(f"--every: {options.every} steps are none; give 1 or more")
    records = [read_records(folder / RECORDS) for folder in options.folders]
    lengths = {one["steps"] for of_run in records for one in of_run if one["stage"] == "qat"}
    if len(lengths) > 1:
        parser.error(f"folders: runs of {sorted(lengths)} steps; compare runs of equal length")
    found = [series(of_run).get(options.term, ((), ())) for of_run in records]
    terms = [dict(zip(*columns, strict=True)) for columns in found]
    common = set.intersection(*map(set, terms))
    if not common:
        parser.error(f"--term: '{options.term}' was recorded at no step that all runs have")
    print("| steps |", " | ".join(folder.name for folder in options.folders), "|")
    print("|---" * (1 + len(terms)) + "|")
    first = max(common) % options.every  # whole rows, the last one ends with the run
    for last in range(first or options.every, max(common) + 1, options.every):
        inside = [step for step in common if last - options.every < step <= last]
        if inside:
            means = [sum(values[step] for step in inside) / len(inside) for values in terms]
            print(f"| {last} |", " | ".join(f"{mean:.5f}" for mean in means), "|")


if __name__ == "__main__":
    main()
