"""What a language model loses before any training, on ten blocks of 512 tokens (docs/results.md),
and what a packed folder of it loses there.

usage: python eval/start_table.py MODEL --train TEXT --valid TEXT [--twin] [--bos] [--blocks N]
       ROW...

A row is fields of a recipe as JSON, for example {"quant": {"scheme": "w4a8kv4"}}, or a packed
folder of the model. The weights are rounded on N blocks (32) spread over the training text (plain
text or .gz); the ten begin at character 200,000 of the held-out text. --bos puts BOS in the place
of their first tokens, which some models need (Gemma). --twin measures the rotated twin: the same
function with ordinary weights, its head untied, its residual stream turned by a random matrix.

    KL        to the float model, nats a token      same top   share of equal most likely tokens
    MB        model.safetensors                     bits       a weight of the matrices, with scales
    seconds   of prepare and calibrate              peak       resident memory until then
"""

from __future__ import annotations

import argparse
import gzip
import json
import math
import time
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from edgeqat.checkpoint import file_bytes
from edgeqat.data.text import Blocks
from edgeqat.hf import float_model, packed_folder
from edgeqat.hf.stored import stored_tensors
from edgeqat.memory import peak_rss_bytes
from edgeqat.nn import convert
from edgeqat.nn.half import keep_half
from edgeqat.nn.residual import rotate_residual
from edgeqat.pipeline.preparation import prepared
from edgeqat.pipeline.text_task import TextTask
from edgeqat.pipeline.widths import with_widths
from edgeqat.recipe.recipe import Recipe

CONTEXT, TRAIN_BATCH, VALID_BLOCKS = 512, 4, 10
START, CHARACTERS = 200_000, 8 * CONTEXT


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("model")
    parser.add_argument("rows", nargs="+")
    parser.add_argument("--train", required=True)
    parser.add_argument("--valid", required=True)
    parser.add_argument("--twin", action="store_true")
    parser.add_argument("--bos", action="store_true")
    parser.add_argument("--blocks", type=int, default=32)
    options = parser.parse_args()
    model, tokenizer = (
        load(options.model) for load in (float_model.load_model, float_model.load_tokenizer)
    )
    if options.twin:
        untie(model)
        rotate_residual(model)
        model.model.residual_is_rotated = False  # a model like any other
    train, valid = read(options.train), read(options.valid)
    step = len(train) // options.blocks
    starts = [train[at * step : at * step + CHARACTERS] for at in range(options.blocks)]
    blocks = torch.tensor([ids(tokenizer, text)[:CONTEXT] for text in starts])
    held = torch.tensor(ids(tokenizer, valid[START:])[: VALID_BLOCKS * CONTEXT]).view(-1, CONTEXT)
    if options.bos:
        blocks[:, 0] = held[:, 0] = tokenizer.bos_token_id
    task = TextTask(keep_half(model), None, tokenizer, Blocks(blocks), Blocks(held))
    show("float", score(task.model, task.model, task.valid.ids), {})
    for row in options.rows:
        if Path(row).is_dir():
            show(row, score(packed_folder.load(Path(row)), task.model, task.valid.ids), {})
        else:
            show(row, *measured(task, json.loads(row)))


def measured(task: TextTask, row: dict[str, Any]) -> tuple[Any, dict]:
    """Score and costs of a row."""
    train = {"batch_size": TRAIN_BATCH, **row.get("train", {})}
    activation = {"calibration_batches": len(task.train) // TRAIN_BATCH}
    quant = {"activation": activation, **row.get("quant", {})}
    recipe = Recipe.model_validate(
        {**row, "quant": quant, "train": train, "data": {"context": CONTEXT}}
    )
    begun = time.perf_counter()
    recipe = with_widths(recipe, task)
    model = prepared(task, recipe, recipe.quant)
    seconds, peak = time.perf_counter() - begun, peak_rss_bytes()
    found = score(model, task.model, task.valid.ids)
    convert.convert(model)
    specs = [
        s for s in convert.packed_specs(model).values() if s.kind == "linear" and not s.tied_to
    ]
    scales = sum(s.shape[0] * -(-s.shape[1] // (s.group_size or s.shape[1])) for s in specs)
    codes = sum(s.bits * math.prod(s.shape) for s in specs)
    costs = {
        "MB": file_bytes(stored_tensors(model)) / 1e6,
        "bits": (codes + 16 * scales) / (sum(math.prod(s.shape) for s in specs) or math.nan),
        "seconds": seconds,
        "peak GB": peak / 1e9,
    }
    return found, costs


@torch.no_grad()
def score(model: nn.Module, floating: nn.Module, blocks: Tensor) -> tuple[float, float, float]:
    """Perplexity, KL and share of the same most likely token."""
    losses, divergence, same = [], [], []
    for row in blocks:
        goal, own = log_probabilities(floating, row), log_probabilities(model, row)
        losses.append(F.nll_loss(own[:-1], row[1:]).item())
        divergence.append((goal.exp() * (goal - own)).sum(-1).mean().item())
        same.append((goal.argmax(-1) == own.argmax(-1)).float().mean().item())
    mean = [sum(values) / len(values) for values in (losses, divergence, same)]
    return math.exp(mean[0]), mean[1], mean[2]


@torch.no_grad()
def log_probabilities(model: Any, row: Tensor) -> Tensor:
    """(T, V) of a block (T,)."""
    return model.eval()(input_ids=row[None], use_cache=False).logits[0].float().log_softmax(-1)


def untie(model: Any) -> None:
    """Give the head a weight of its own, equal to the embedding's."""
    model.lm_head.weight = nn.Parameter(model.model.embed_tokens.weight.detach().clone())
    model.config.tie_word_embeddings = False


def ids(tokenizer: Any, text: str) -> list[int]:
    return list(tokenizer(text, add_special_tokens=False)["input_ids"])


def read(name: str) -> str:
    with (gzip.open if name.endswith(".gz") else open)(Path(name), "rt", encoding="utf-8") as file:
        return str(file.read())


def show(row: str, found: tuple[float, float, float], costs: dict[str, float]) -> None:
    perplexity, divergence, same = found
    words = [f"perplexity {perplexity:.3f}", f"KL {divergence:.4f}", f"same top {same:.3f}"]
    words += [f"{name} {value:.3f}" for name, value in costs.items()]
    print(row, "|", ", ".join(words), flush=True)


if __name__ == "__main__":
    main()
