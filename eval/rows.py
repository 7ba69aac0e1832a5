"""Rows of docs/results.md from finished runs of llama-8m-novels:
`python eval/rows.py runs/w*/metrics.json`.
"""

import json
import sys
from pathlib import Path

HEAD = (
    "| run | float | same steps | PTQ | rotated | QAT | over float | recovered | MB | QAT time |\n"
    "|---|---|---|---|---|---|---|---|---|---|"
)


def row(path: Path) -> str:
    """One table row from a metrics.json."""
    values = json.loads(path.read_text(encoding="utf-8"))
    names = ("float", "ptq", "qat_start", "qat")
    floating, ptq, start, qat = (values[key]["perplexity"] for key in names)
    same = values["float_same_steps"]
    recovered = values["recovered"]
    cells = [
        path.parent.name,
        f"{floating:.2f}",
        f"{same['perplexity']:.2f}" if same else "-",
        f"{ptq:.2f} ({100 * (ptq / floating - 1):+.1f}%)",
        f"{start:.2f} ({100 * (start / floating - 1):+.1f}%)",
        f"{qat:.2f}",
        f"{100 * (qat / floating - 1):+.2f}%",
        "-" if recovered is None else f"{100 * recovered:.0f}%",
        f"{values['bytes']['total'] / 1e6:.2f}",
        f"{values['train']['seconds']:.0f} s",
    ]
    return "| " + " | ".join(cells) + " |"


if __name__ == "__main__":
    print(HEAD)
    for name in sys.argv[1:]:
        print(row(Path(name)))
