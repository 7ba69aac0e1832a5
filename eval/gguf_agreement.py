"""llama.cpp on an exported file against torch on the packed folder: perplexity and same top token.

    python eval/gguf_agreement.py FOLDER FILE.gguf --data TEXT [--blocks 16]

The cache of llama.cpp is of the type that the folder was trained for. Needs llama-cpp-python.
"""

from __future__ import annotations

import argparse
import math
from pathlib import Path

import torch
from torch.nn import functional as F

from edgeqat import recipe as recipes
from edgeqat.data.text import held_out_blocks
from edgeqat.evaluate import llama_cpp
from edgeqat.export.llama import KV_TYPES
from edgeqat.hf import folder as packed_folder


def perplexity(logits: torch.Tensor, ids: torch.Tensor) -> float:
    """Of the tokens behind the first one of each block."""
    return math.exp(F.cross_entropy(logits[:, :-1].flatten(0, 1), ids[:, 1:].flatten()).item())


@torch.no_grad()
def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("folder", type=Path)
    parser.add_argument("file", type=Path)
    parser.add_argument("--data", required=True)
    parser.add_argument("--blocks", type=int, default=16)
    parser.add_argument("--threads", type=int, default=1)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    values = {"data.root": options.data, "data.valid_blocks": options.blocks}
    recipe = recipes.load(options.folder / recipes.RESOLVED, values)
    ids = held_out_blocks(recipe.data, packed_folder.load_tokenizer(options.folder)).ids
    cache = KV_TYPES[recipe.quant.bits().kv_bits]
    model = packed_folder.load(options.folder)
    own = torch.cat([model(part, use_cache=False).logits for part in ids.split(4)])
    other = llama_cpp.logits(options.file, ids, cache, options.threads)
    ours, theirs = perplexity(own, ids), perplexity(other, ids)
    same = (own.argmax(-1) == other.argmax(-1)).float().mean().item()
    change = 100 * (theirs / ours - 1)
    print(f"perplexity torch {ours:.3f}, llama.cpp {theirs:.3f} ({change:+.2f}%)")
    print(f"same top token {100 * same:.2f}% of {own[..., 0].numel()}")


if __name__ == "__main__":
    main()
