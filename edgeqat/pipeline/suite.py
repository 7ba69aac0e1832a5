"""`edgeqat eval --suite small`: what a quantized language model keeps of its float model, on one
page.

    positions   perplexity, KL and top token on long blocks of held-out text, by position
    needles     codes hidden in texts of 1,024 tokens and more, how many are found
    chat        answers to every second prompt, where there is a chat template
    tasks       lm-eval's, where their data are at hand
"""

from __future__ import annotations

import logging
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
from edgeqat.harness.backends import FAKE_QUANT, FLOAT
from edgeqat.harness.run import evaluate_tasks
from edgeqat.output import check_file, write_json
from edgeqat.pipeline.evaluate import pair, recipe_of
from edgeqat.pipeline.load import task_of_folder, with_data_root

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
) -> dict[str, Any]:
    """What the module's docstring lists, of a packed folder beside its float model, written to
    `output` where one is named. Raises an EdgeQATError in one line.
    """
    if suite not in SUITES:
        raise UsageError(f"suite: '{suite}' is unknown; {nearest(suite, list(SUITES))}")
    check_file(output)
    if threads is not None:
        torch.set_num_threads(threads)
    if task_of_folder(folder).metric.of_images:
        raise UsageError("suite: it is for language models; leave it out")
    recipe = with_data_root(recipe_of(folder, data, 0))
    tokenizer, model, floating = pair(folder, against)
    text = held_out_blocks(recipe.data, tokenizer).ids.flatten()
    context = min(CONTEXT, model.config.max_position_embeddings, len(text))
    blocks = text[: len(text) // context * context].view(-1, context)
    spread = torch.linspace(0, len(blocks) - 1, min(BLOCKS, len(blocks))).long()
    result: dict[str, Any] = {
        "model": str(folder),
        "scheme": checkpoint.read_config(folder)["quantization_config"]["scheme"],
        "against": against,
    }
    logger.info("perplexity by position")
    result["positions"] = by_position(model, floating, blocks[spread])
    logger.info("needles in a haystack")
    result["needles"] = needles([floating, model], tokenizer, text, LENGTHS)
    result["chat"] = None
    if tokenizer.chat_template:
        logger.info("answers to every second prompt")
        result["chat"] = chat(model, floating, tokenizer, PROMPTS[::2])
    result["tasks"] = None
    if data_root is not None:
        logger.info("tasks")
        result["tasks"] = {
            name: evaluate_tasks(one, TASKS, backend, None, data_root, LIMIT, threads=threads)[0]
            for name, one, backend in (
                ("float", against, FLOAT), ("model", str(folder), FAKE_QUANT)
            )
        }  # fmt: skip
    if output is not None:
        write_json(output, result)
    return result
