"""An export in its own runtime against torch on the packed folder: perplexity and same top token,
or the same class of images.

usage: python eval/export_agreement.py FOLDER FILE.gguf --data TEXT [--blocks 16]
       python eval/export_agreement.py FOLDER COMPRESSED_TENSORS_FOLDER --data TEXT
       python eval/export_agreement.py FOLDER FILE.onnx --data IMAGES

llama.cpp's cache is of the type that the folder was trained for. A compressed-tensors folder is
read by transformers alone and compared with float keys and values; with `--text FILE` its
tokenizer has to split the lines of that file as the folder's own does. Needs llama-cpp-python,
compressed-tensors or onnxruntime.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch
from torch import Tensor

from edgeqat import checkpoint
from edgeqat.bench import llama_cpp
from edgeqat.bench.onnx_runtime import OnnxClassifier
from edgeqat.data.text import held_out_blocks
from edgeqat.evaluate.perplexity import perplexity_of
from edgeqat.export.llama import KV_TYPES
from edgeqat.hf import image_folder, image_model, packed_folder
from edgeqat.nn.folding import inference
from edgeqat.nn.logits import class_logits
from edgeqat.pipeline.image_task import held_out
from edgeqat.quant.dynamic import CacheQuantizer
from edgeqat.recipe import files as recipes
from edgeqat.recipe.recipe import Recipe


@torch.no_grad()
def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("folder", type=Path)
    parser.add_argument("export", type=Path)
    parser.add_argument("--data", required=True)
    parser.add_argument("--blocks", type=int, default=16, help="held-out blocks of text")
    parser.add_argument("--text", type=Path, help="lines that both tokenizers have to split alike")
    parser.add_argument("--threads", type=int, default=1)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    images = options.export.suffix == ".onnx"
    if options.text and options.export.is_file():
        parser.error("--text: only compressed-tensors folders hold a tokenizer")
    values = {"data.root": options.data}
    if not images:
        values["data.valid_blocks"] = options.blocks
    recipe = recipes.load(options.folder / recipes.RESOLVED, values)
    if images:
        print(compare_images(options, recipe))
    else:
        print(compare_text(options, recipe))
    if options.text:
        print(compare_tokens(options))


def compare_text(options: argparse.Namespace, recipe: Recipe) -> str:
    """Perplexities and how often both have the same top token."""
    ids = held_out_blocks(recipe.data, packed_folder.load_tokenizer(options.folder)).ids
    model = packed_folder.load(options.folder)
    if options.export.suffix == ".gguf":
        cache = KV_TYPES[recipe.quant.bits().kv_bits]
        other = llama_cpp.logits(options.export, ids, cache, options.threads)
    else:
        from transformers import AutoModelForCausalLM

        for module in model.modules():  # --drop-kv: such folders hold no cache
            if isinstance(module, CacheQuantizer):
                module.enabled = False
        exported = AutoModelForCausalLM.from_pretrained(options.export, dtype=torch.float32).eval()
        other = all_logits(exported, ids)
    own = all_logits(model, ids)
    ours, theirs = perplexity_of(own, ids), perplexity_of(other, ids)
    same = (own.argmax(-1) == other.argmax(-1)).float().mean().item()
    change = 100 * (theirs / ours - 1)
    return (
        f"perplexity torch {ours:.3f}, exported {theirs:.3f} ({change:+.2f}%)\n"
        f"same top token {100 * same:.2f}% of {own[..., 0].numel()}"
    )


def compare_images(options: argparse.Namespace, recipe: Recipe) -> str:
    """How often both give held-out images the same class."""
    config = checkpoint.read_config(options.folder)
    kind = image_model.from_config(config)
    images, normalizer = held_out(recipe.data, kind), kind.normalizer()
    exported, same = OnnxClassifier(options.export, options.threads), 0
    with inference(image_folder.load(options.folder, config)) as model:
        for pixels in images.pixels.split(images.at_once):
            inputs = normalizer(pixels)
            theirs = torch.from_numpy(exported(inputs)).argmax(-1)
            same += int((class_logits(model, inputs).argmax(-1) == theirs).sum())
    return f"same class {100 * same / len(images):.2f}% of {len(images)}"


def compare_tokens(options: argparse.Namespace) -> str:
    """How many lines of a text both tokenizers split alike."""
    from transformers import AutoTokenizer

    own = packed_folder.load_tokenizer(options.folder)
    other = AutoTokenizer.from_pretrained(options.export)
    lines = options.text.read_text(encoding="utf-8").splitlines()
    same = sum(own(line).input_ids == other(line).input_ids for line in lines)
    return f"same tokens in {same} of {len(lines)} lines"


def all_logits(model: torch.nn.Module, ids: Tensor) -> Tensor:
    """Logits (N, T, V) of blocks (N, T)."""
    return torch.cat([model(part, use_cache=False).logits for part in ids.split(4)])


if __name__ == "__main__":
    main()
