"""`edgeqat eval --suite small`: what a quantized language model keeps of its float model, on one
page.

    positions   perplexity, KL and top token on long blocks of held-out text, by position
    needles     codes hidden in texts of 1,024 tokens and more, how many are found
    chat        answers to every second prompt, where there is a chat template
    tasks       lm-eval's, where their data are at hand
"""

from __future__ import annotations

import logging
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from edgeqat import checkpoint
from edgeqat.data.text import held_out_blocks
from edgeqat.errors import UsageError, nearest
from edgeqat.evaluate.chat import chat
from edgeqat.evaluate.chat_prompts import PROMPTS
from edgeqat.evaluate.needle import LENGTHS, needles
from edgeqat.evaluate.position import by_position
from edgeqat.evaluate.reader import TorchReader
from edgeqat.harness.backends import FLOAT, Torch
from edgeqat.harness.extra import check_installed
from edgeqat.harness.run import evaluate_tasks
from edgeqat.nn.precision import uses_bf16
from edgeqat.output import check_file, write_json
from edgeqat.pipeline.evaluate import recipe_of
from edgeqat.pipeline.load import task_of_folder, with_data_root
from edgeqat.pipeline.pair import Pair, pair

logger = logging.getLogger(__name__)

SUITES = ("small",)
CONTEXT, BLOCKS = 2048, 8
TASKS, LIMIT = ("blimp",), 5  # examples of each of its 67 tasks


def evaluate_suite(
    folder: Path,
    against: str,
    suite: str = SUITES[0],
    output: Path | None = None,
    threads: int | None = None,
    data: str | None = None,
    data_root: str | None = None,
    backend: str | None = None,
) -> dict[str, Any]:
    """What the module's docstring lists, of a packed folder beside its float model, written to
    `output` where one is named; `backend` None is the engine where it runs the folder. Raises an
    EdgeQATError in one line.
    """
    if suite not in SUITES:
        raise UsageError(f"suite: '{suite}' is unknown; {nearest(suite, list(SUITES))}")
    check_file(output)
    if data_root is not None:
        check_installed()
    if threads is not None:
        torch.set_num_threads(threads)
    if task_of_folder(folder).metric.of_images:
        raise UsageError("suite: it is for language models; leave it out")
    recipe = with_data_root(recipe_of(folder, data, 0))
    result: dict[str, Any] = {
        "model": str(folder),
        "scheme": checkpoint.read_config(folder)["quantization_config"]["scheme"],
        "against": against,
    }
    with pair(folder, against, backend, threads) as opened:
        text = held_out_blocks(recipe.data, opened.tokenizer).ids.flatten()
        result["backend"] = opened.model.name
        result |= _parts(opened, text)
        result["tasks"] = None
        if data_root is not None:
            with _timed("tasks", result["seconds"]):
                result["tasks"] = _tasks(folder, against, opened, data_root, threads)
    if output is not None:
        write_json(output, result)
    return result


def _parts(opened: Pair, text: torch.Tensor) -> dict[str, Any]:
    """Positions, needles and chat on held-out text (T,), and the seconds of each."""
    tokenizer, model, floating = opened
    context = min(CONTEXT, model.positions, len(text))
    blocks = text[: len(text) // context * context].view(-1, context)
    spread = torch.linspace(0, len(blocks) - 1, min(BLOCKS, len(blocks))).long()
    seconds: dict[str, float] = {}
    result: dict[str, Any] = {"seconds": seconds}
    with _timed("positions", seconds):
        result["positions"] = by_position(model, floating, blocks[spread])
    with _timed("needles", seconds):
        quick = TorchReader(floating.model, bf16=uses_bf16(None, floating.model, "cpu"))
        result["needles"] = needles([quick, model], tokenizer, text.tolist(), LENGTHS)
        quick.close()
    result["chat"] = None
    if tokenizer.chat_template:
        with _timed("chat", seconds):
            result["chat"] = chat(model, floating, tokenizer, PROMPTS[::2])
    return result


def _tasks(
    folder: Path, against: str, opened: Pair, data_root: str, threads: int | None
) -> dict[str, Any]:
    floating = Torch(FLOAT, opened.floating.model, opened.tokenizer, 64)
    logger.info("tasks: %s of both models", ", ".join(TASKS))
    return {
        name: evaluate_tasks(
            one, TASKS, backend, None, data_root, LIMIT, threads=threads, opened=at_hand
        )[0]
        for name, one, backend, at_hand in (
            ("float", against, FLOAT, floating),
            ("model", str(folder), opened.model.name, None),
        )
    }


@contextmanager
def _timed(part: str, seconds: dict[str, float]) -> Iterator[None]:
    start, processor = time.perf_counter(), time.process_time()
    yield
    seconds[part] = round(time.perf_counter() - start, 1)
    processor = time.process_time() - processor
    logger.info("%s: done in %.0f seconds, %.0f of processor time", part, seconds[part], processor)
