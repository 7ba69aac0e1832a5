"""An ONNX export in its own runtime against torch on the packed folder: how often both give
held-out images the same class. `edgeqat verify` does this for language models.

usage: python eval/onnx_agreement.py FOLDER FILE.onnx --data IMAGES [--threads N]
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch

from edgeqat import checkpoint
from edgeqat.bench.onnx_runtime import OnnxClassifier
from edgeqat.hf import image_folder, image_model
from edgeqat.nn.folding import inference
from edgeqat.nn.logits import class_logits
from edgeqat.pipeline.image_task import held_out
from edgeqat.recipe import files as recipes


@torch.no_grad()
def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("folder", type=Path)
    parser.add_argument("export", type=Path)
    parser.add_argument("--data", required=True)
    parser.add_argument("--threads", type=int, default=1)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    recipe = recipes.load(options.folder / recipes.RESOLVED, {"data.root": options.data})
    config = checkpoint.read_config(options.folder)
    kind = image_model.from_config(config)
    images, normalizer = held_out(recipe.data, kind), kind.normalizer()
    exported, same = OnnxClassifier(options.export, options.threads), 0
    with inference(image_folder.load(options.folder, config)) as model:
        for pixels in images.pixels.split(images.at_once):
            inputs = normalizer(pixels)
            theirs = torch.from_numpy(exported(inputs)).argmax(-1)
            same += int((class_logits(model, inputs).argmax(-1) == theirs).sum())
    print(f"same class {100 * same / len(images):.2f}% of {len(images)}")


if __name__ == "__main__":
    main()
