"""The engine against torch on held-out text, teacher-forced: logits and most likely tokens.

usage: python eval/engine_agreement.py FOLDER --data TEXT [--prompts 8] [--tokens 250]

torch computes the same packed folder in two ways that are equal up to rounding: integer products
(packed) and float products of dequantized values (fake-quant). A sum of another order may round a
code the other way, which moves logits by a step; so torch's own two ways are set against each other
as well: that is what no engine can be asked to beat. `clear`: positions where torch's best two
logits are further apart than --tie.

    cosine      of the logits of all positions of a prompt, the least of the prompts
    same top    share of positions with the same most likely token, of all and of the clear ones
    perplexity  over the prompts
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch
from torch import Tensor
from torch.nn import functional as F

from edgeqat.data.text import held_out_blocks
from edgeqat.evaluate.perplexity import perplexity_of
from edgeqat.hf import packed_folder
from edgeqat.recipe import files as recipes
from edgeqat.runtime.engine import Engine


@torch.no_grad()
def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("folder", type=Path)
    parser.add_argument("--data", required=True)
    parser.add_argument("--prompts", type=int, default=8)
    parser.add_argument("--tokens", type=int, default=250)
    parser.add_argument("--tie", type=float, default=0.05, help="difference of logits")
    parser.add_argument("--threads", type=int, default=2)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    values = {"data.root": options.data, "data.valid_blocks": options.prompts}
    values["data.context"] = options.tokens
    data = recipes.load(options.folder / recipes.RESOLVED, values).data
    ids = held_out_blocks(data, packed_folder.load_tokenizer(options.folder)).ids
    with Engine(options.folder, options.threads) as engine:
        native = [engine_logits(engine, row) for row in ids.tolist()]
    ways = {"native": torch.stack(native)}
    for name in ("packed", "fake-quant"):
        model = packed_folder.load(options.folder, integer=name == "packed")
        ways[name] = model(ids, use_cache=False).logits
    print(f"{ids.shape[0]} prompts of {ids.shape[1]} tokens")
    print(table(ways, ids, options.tie))


def engine_logits(engine: Engine, ids: list[int]) -> Tensor:
    """Logits (T, V) of a sequence of its own."""
    engine.reset()
    return torch.from_numpy(engine.prefill(ids, every=True))


def table(ways: dict[str, Tensor], ids: Tensor, tie: float) -> str:
    """Markdown: every pair of ways, logits (N, T, V) each."""
    rows = ["| pair | cosine | same top | clear | same top, clear | perplexity |"]
    rows.append("|---|---|---|---|---|---|")
    names = list(ways)
    for a, b in [(names[0], names[1]), (names[0], names[2]), (names[1], names[2])]:
        first, second = ways[a], ways[b]
        cosine = F.cosine_similarity(first.flatten(1), second.flatten(1), dim=-1).min().item()
        best = second.topk(2, dim=-1).values
        clear = best[..., 0] - best[..., 1] > tie
        same = first.argmax(-1) == second.argmax(-1)
        shares = [100 * part.float().mean().item() for part in (same, clear, same[clear])]
        found = [perplexity_of(logits, ids) for logits in (first, second)]
        change = 100 * (found[0] / found[1] - 1)
        rows.append(
            f"| {a}, {b} | {cosine:.6f} | {shares[0]:.2f}% | {shares[1]:.1f}% | {shares[2]:.2f}% | "
            f"{found[0]:.3f}, {found[1]:.3f} ({change:+.3f}%) |"
        )
    return "\n".join(rows)


if __name__ == "__main__":
    main()
