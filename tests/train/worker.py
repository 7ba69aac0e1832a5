"""What two processes do in test_distributed.py: `torchrun --nproc_per_node 2 worker.py FOLDER`.

FOLDER holds a float model, a text and, afterwards, what each process saw.
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path

import torch
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor

from edgeqat.cli import run
from edgeqat.coreset.float_outputs import float_outputs
from edgeqat.coreset.selection import Selection
from edgeqat.hf import packed_folder
from edgeqat.nn import convert
from edgeqat.pipeline import self_text
from edgeqat.pipeline.preparation import prepared
from edgeqat.pipeline.text_task import load_text
from edgeqat.recipe import files as recipes
from edgeqat.recipe.data import CoresetSection
from edgeqat.recipe.recipe import Recipe
from edgeqat.train import processes, sharding
from edgeqat.train.objective import Objective
from edgeqat.train.optim import make_optimizer


def quantize(folder: Path) -> int:
    """The whole command, twice: stopped after step 3 in one process, then to its end."""
    from edgeqat.train.interruption import Interruption

    arguments = ["quantize", "--recipe", str(folder / "two.yaml"), "--output", str(folder / "two")]
    on_step_end = Interruption.on_step_end

    def told(self, args, state, control, **rest):
        self.requested |= state.global_step == 3 and not processes.is_first()
        return on_step_end(self, args, state, control, **rest)

    Interruption.on_step_end = told
    assert run(arguments) == 130
    stopped_at = [path.name for path in (folder / "two.run" / "qat").iterdir()]
    assert stopped_at == ["step-3"], stopped_at
    Interruption.on_step_end = on_step_end
    processes.wait()
    return run(arguments)


def shard_and_train(folder: Path) -> dict:
    """Two steps of a model spread over both processes, written as a packed folder."""
    recipe = recipes.load(folder / "two.yaml")
    inputs = load_text(recipe)
    model = prepared(inputs, recipe, recipe.quant)
    for layer in model.model.layers:
        fully_shard(layer)
    fully_shard(model)
    scales = [p for name, p in model.named_parameters() if name.endswith("quantizer.scale")]
    optimizer = make_optimizer(model, recipe.train)
    objective = Objective(recipe.distill, inputs.model)
    rank = int(os.environ["RANK"])
    losses = []
    for step in range(2):
        batch = inputs.train.ids[4 * step : 4 * step + 4][2 * rank : 2 * rank + 2]
        loss = objective(model, {"input_ids": batch})["loss"]
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        total = loss.detach().clone()
        torch.distributed.all_reduce(total)
        losses.append(total.item() / 2)
    assert sharding.is_sharded(model)
    whole = sharding.gathered(model, prepared(inputs, recipe, recipe.quant))
    assert not sharding.is_sharded(whole)
    if processes.is_first():
        (folder / "sharded").mkdir()
        convert.convert(whole)
        packed_folder.write(folder / "sharded", whole, recipe.quant, inputs.tokenizer)
    return {
        "losses": losses,
        "scales": len(scales),
        "spread": all(isinstance(p, DTensor) and p.ndim > 0 for p in scales),
    }


def coreset(folder: Path) -> list[int]:
    """The blocks that both processes together select."""
    recipe = recipes.load(folder / "two.yaml")
    inputs = load_text(recipe)
    selection = Selection(
        CoresetSection(share=0.3, selector="res"), inputs.samples(recipe), inputs.model, 0
    )
    selection.outputs = float_outputs(inputs.model, inputs.samples(recipe), "two processes", 16)
    return selection(prepared(inputs, recipe, recipe.quant), 0.0, 0).indices.tolist()


def write_text(folder: Path) -> dict:
    """What both processes wrote of the model's own text: numbers of batches, and the file."""
    recipe = own_text(folder / "two.yaml")
    batch, numbers = self_text.Writer.batch, []
    self_text.Writer.batch = lambda self, number: numbers.append(number) or batch(self, number)
    file = Path(self_text.with_self_text(recipe).data.train)
    return {"numbers": numbers, "text": file.read_text(encoding="utf-8")}


def own_text(file: Path) -> Recipe:
    """A recipe whose model writes a little."""
    self_text.BATCH, self_text.LENGTH = 4, 40
    recipe = recipes.load(file)
    data = {"root": None, "train": "self", "self_tokens": 500}
    return recipe.model_copy(update={"data": recipe.data.model_copy(update=data)})


def main(folder: Path) -> None:
    torch.set_num_threads(1)
    seen = {"code": quantize(folder), "count": processes.count(), **shard_and_train(folder)}
    seen["coreset"] = coreset(folder)
    seen["own"] = write_text(folder)
    rank = os.environ["RANK"]
    (folder / f"seen-{rank}.json").write_text(json.dumps(seen), encoding="utf-8")
    torch.distributed.destroy_process_group()


if __name__ == "__main__":
    main(Path(sys.argv[1]))
