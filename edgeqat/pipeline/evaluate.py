"""`edgeqat eval`: a packed folder on held-out text, in one pass and decoding, against its float
model.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from transformers import PreTrainedModel

from edgeqat import checkpoint
from edgeqat import recipe as recipes
from edgeqat.data.text import held_out_blocks
from edgeqat.errors import FormatError, ModelError, OutputError, UsageError
from edgeqat.evaluate.agreement import MODES, agreement
from edgeqat.evaluate.perplexity import conditions, perplexity
from edgeqat.hf import folder as packed_folder
from edgeqat.hf import source
from edgeqat.pipeline.inputs import with_data_root
from edgeqat.pipeline.quantize import RESOLVED, data_name
from edgeqat.recipe import Recipe


def evaluate(
    folder: Path,
    data: str | None = None,
    against: str | None = None,
    output: Path | None = None,
    mode: str = "both",
    blocks: int | None = None,
    exact: bool = True,
) -> dict[str, Any]:
    """Evaluate a packed folder on the held-out text of its recipe (or of `data`), and write the
    result to `output` where one is named.

    `blocks` limits how many are evaluated (0: all); `exact` multiplies in float64. Raises an
    EdgeQATError in one line.
    """
    if mode not in MODES:
        raise UsageError(f"mode: '{mode}' is unknown; choose from {', '.join(MODES)}")
    if output is not None and not output.absolute().parent.is_dir():
        raise OutputError(f"output: the folder of '{output}' does not exist; make it first")
    recipe = with_data_root(_recipe(folder, data, blocks))
    model = packed_folder.load(folder)
    floating = _float_model(against, model) if against else None
    held = held_out_blocks(recipe.data, packed_folder.load_tokenizer(folder))
    scheme = recipe.quant.bits()
    found = {
        "model": str(folder),
        "scheme": recipe.quant.scheme,
        "data": data_name(recipe.data),
        **agreement(model, held, scheme, floating, mode, exact),
        "against": None,
        "evaluation": {**conditions(recipe.data, held), "mode": mode, "exact": exact},
    }
    if floating is not None:
        found["against"] = {"model": against, "perplexity": perplexity(floating, held)}
    if output is not None:
        temporary = output.with_name(f".{output.name}")
        temporary.write_text(json.dumps(found, indent=2) + "\n", encoding="utf-8")
        temporary.replace(output)
    return found


def _recipe(folder: Path, data: str | None, blocks: int | None) -> Recipe:
    """The recipe a packed folder was made by, with the text to evaluate on."""
    checkpoint.read_config(folder)
    path = folder / RESOLVED
    if not path.is_file():
        raise FormatError(f"{RESOLVED}: missing from '{folder}'; copy the folder again")
    values = {"data.root": data, "data.valid_blocks": blocks}
    return recipes.load(path, {key: value for key, value in values.items() if value is not None})


def _float_model(name: str, model: PreTrainedModel) -> PreTrainedModel:
    floating = source.load_model(name).eval()
    if floating.config.vocab_size != model.config.vocab_size:
        raise ModelError(
            f"against: '{name}' has a vocabulary of {floating.config.vocab_size}, the packed model "
            f"one of {model.config.vocab_size}; name the float model it was made from"
        )
    return floating
