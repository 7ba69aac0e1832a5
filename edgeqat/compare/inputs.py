"""What every row starts from, in files of one folder, so that a process of its own reads it: the
recipe, and the blocks of training and held-out text as token ids.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from edgeqat import checkpoint
from edgeqat.data.text import Blocks
from edgeqat.hf import float_model
from edgeqat.nn.half import keep_half
from edgeqat.output import whole_file, write_text
from edgeqat.pipeline.text_task import TextTask
from edgeqat.recipe import files as recipes
from edgeqat.recipe.recipe import Recipe

_RECIPE, _BLOCKS = "inputs.json", "blocks.safetensors"


@dataclass(frozen=True)
class Inputs:
    """The folder `place`, which also takes what rows share and what they write."""

    place: Path

    def write(self, recipe: Recipe, task: TextTask) -> None:
        """Keep a resolved recipe and the blocks of its task."""
        assert isinstance(task.train, Blocks)
        write_text(self.place / _RECIPE, json.dumps(recipe.model_dump(mode="json")))
        ids = {"train": task.train.ids, "valid": task.valid.ids}
        with whole_file(self.place / _BLOCKS) as part:
            checkpoint.write_tensors(part, {n: t.to(torch.int32) for n, t in ids.items()})

    def recipe(self, scheme: str | None = None) -> Recipe:
        """The recipe, at another scheme where one is given."""
        values = json.loads((self.place / _RECIPE).read_text(encoding="utf-8"))
        if scheme is not None:
            values["quant"]["scheme"] = scheme
        return recipes.validate(values)

    def task(self) -> TextTask:
        """The task with its float model, as `edgeqat quantize` loads it."""
        train, valid = (self._blocks(name) for name in ("train", "valid"))
        name, weights = self.recipe().model.name, self.recipe().model.weights
        model = keep_half(float_model.load_model(name, weights))
        return TextTask(model, None, float_model.load_tokenizer(name), train, valid)

    def held_out(self) -> Tensor:
        """Token ids (N, T) that every row is scored on."""
        return self._blocks("valid").ids

    def _blocks(self, name: str) -> Blocks:
        return Blocks(checkpoint.read_tensors(self.place / _BLOCKS)[name].long())
