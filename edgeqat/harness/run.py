"""`edgeqat eval --tasks`: lm-eval's tasks on a packed folder or its float model, and the result.

The file is lm-eval's own result (results, groups, configs, versions, n-shot, config, ...) with one
more section, `edgeqat`: scheme, backend, the hash of the recipe and the commit of the checkout.
"""

from __future__ import annotations

import subprocess
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import edgeqat
from edgeqat import checkpoint
from edgeqat.errors import UsageError
from edgeqat.harness import ifeval
from edgeqat.harness.backends import FLOAT, Backend
from edgeqat.harness.extra import check_installed
from edgeqat.output import check_file, write_json
from edgeqat.recipe.files import RESOLVED

_FLOAT_SCHEME = "w16a16kv16"


def evaluate_tasks(
    model: str,
    tasks: Sequence[str],
    backend: str,
    output: Path | None = None,
    data_root: str | None = None,
    limit: float | None = None,
    batch_size: int | None = None,
    max_length: int | None = None,
    threads: int | None = None,
    num_fewshot: int | None = None,
    gen_kwargs: str | None = None,
    chat: bool = False,
    opened: Backend | None = None,
) -> tuple[dict[str, Any], str]:
    """lm-eval's result of tasks on a backend, written to `output` where one is named, and its
    tables. `chat` puts prompts into the model's chat template, worked examples as turns of the
    conversation; `opened` is that backend where the caller has it already. Raises an EdgeQATError
    in one line.
    """
    check_installed()
    check_file(output)
    if limit is not None and limit <= 0:
        raise UsageError(f"limit: {limit:g} examples are none; give 1 or more, or a share of them")
    if not tasks:
        raise UsageError("tasks: none is named; write for example --tasks blimp")
    if ifeval.NAME in tasks:
        ifeval.check(data_root)
    from edgeqat.harness.lm import EdgeQATLM, plain, run_tasks, table

    lm = EdgeQATLM(model, backend, batch_size, max_length, threads=threads, opened=opened)
    start = time.perf_counter()
    try:
        result = run_tasks(
            lm, tasks, task_folder(), data_root, limit, num_fewshot, gen_kwargs, chat
        )
    finally:
        lm.opened.close()
    result["edgeqat"] = {
        "version": edgeqat.__version__,
        "model": model,
        "backend": backend,
        "chat": chat,
        **_origin(Path(model), backend),
        "seconds": round(time.perf_counter() - start, 1),
    }
    if output is not None:
        write_json(output, result, plain)
    return result, table(result)


def task_folder() -> Path:
    """Where our task files are: inside the installed package or in a checkout."""
    package = Path(edgeqat.__file__).parent
    installed = package / "lm_eval"
    return installed if installed.is_dir() else package.parent / "eval" / "lm_eval"


def _origin(folder: Path, backend: str) -> dict[str, Any]:
    """Scheme and recipe of what was evaluated."""
    if not checkpoint.is_packed(folder):
        return {"scheme": _FLOAT_SCHEME, "recipe": None}
    quantization = checkpoint.read_config(folder)["quantization_config"]
    recipe = {"sha256": quantization["sha256"].get(RESOLVED), "commit": _commit()}
    scheme = _FLOAT_SCHEME if backend == FLOAT else quantization["scheme"]
    return {"scheme": scheme, "recipe": recipe}


def _commit() -> str | None:
    """The commit of the checkout that edgeqat runs from; None where it is installed."""
    root = Path(edgeqat.__file__).parents[1]
    if not (root / ".git").exists():
        return None
    command = ["git", "-C", str(root), "rev-parse", "HEAD"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        return None
    return done.stdout.strip()
