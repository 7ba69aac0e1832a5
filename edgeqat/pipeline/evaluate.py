"""`edgeqat eval`: a packed folder on held-out text, in one pass and decoding, or on held-out
images, against its float model.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch

from edgeqat import checkpoint
from edgeqat.data.classes import are_named, first_difference
from edgeqat.data.sources import is_below, source_name
from edgeqat.data.text import held_out_blocks
from edgeqat.errors import FormatError, ModelError, UsageError, nearest
from edgeqat.evaluate.accuracy import accuracy, same_top
from edgeqat.evaluate.agreement import MODES, agreement
from edgeqat.evaluate.average_bits import average_bits
from edgeqat.evaluate.chat import chat
from edgeqat.evaluate.perplexity import conditions, perplexity
from edgeqat.harness.backends import BACKENDS, FAKE_QUANT, FLOAT, NATIVE, PACKED, Native
from edgeqat.hf import float_model, image_model, packed_folder
from edgeqat.output import check_file, write_json
from edgeqat.pipeline.image_task import held_out, matched, place_of
from edgeqat.pipeline.load import task_of_folder, with_data_root
from edgeqat.pipeline.pair import pair
from edgeqat.pipeline.text_task import check_same_vocabulary
from edgeqat.recipe import files as recipes
from edgeqat.recipe.files import RESOLVED
from edgeqat.recipe.recipe import Recipe


def evaluate(
    folder: Path,
    backend: str = FAKE_QUANT,
    output: Path | None = None,
    threads: int | None = None,
    data: str | None = None,
    against: str | None = None,
    mode: str = "both",
    blocks: int | None = None,
    exact: bool | None = None,
) -> dict[str, Any]:
    """Evaluate a packed folder on the held-out text of its recipe (or of `data`), and write the
    result to `output` where one is named.

    `blocks` limits how many are evaluated (0: all); `exact` multiplies in float64 (the default of
    the torch backends, which the engine has not). Raises an EdgeQATError in one line.
    """
    if backend not in BACKENDS:
        raise UsageError(f"backend: '{backend}' is unknown; {nearest(backend, list(BACKENDS))}")
    if backend == FLOAT:
        raise UsageError("backend: 'float' is for --tasks; here name the float model --against")
    if backend == NATIVE and exact:
        raise UsageError("exact: the engine multiplies in float32; leave out --exact")
    if mode not in MODES:
        raise UsageError(f"mode: '{mode}' is unknown; choose from {', '.join(MODES)}")
    check_file(output)
    recipe = with_data_root(recipe_of(folder, data, blocks))
    if threads is not None:
        torch.set_num_threads(threads)
    if task_of_folder(folder).metric.of_images:
        if backend != FAKE_QUANT or blocks is not None or exact is not None or mode != MODES[0]:
            raise UsageError("backend, mode, blocks, exact: they are for text; leave them out")
        result = _evaluate_images(folder, recipe, against)
    else:
        exact = backend != NATIVE if exact is None else exact
        result = _evaluate_text(folder, recipe, against, mode, exact, backend, threads)
    if output is not None:
        write_json(output, result)
    return result


def evaluate_chat(
    folder: Path,
    against: str,
    output: Path | None = None,
    threads: int | None = None,
    backend: str | None = None,
) -> dict[str, Any]:
    """Answers of a packed chat model beside those of its float model (evaluate/chat), written to
    `output` where one is named; `backend` None is the engine where it runs the folder.
    """
    check_file(output)
    if threads is not None:
        torch.set_num_threads(threads)
    scheme = checkpoint.read_config(folder)["quantization_config"]["scheme"]
    result: dict[str, Any] = {"model": str(folder), "scheme": scheme, "against": against}
    with pair(folder, against, backend, threads) as (tokenizer, model, floating):
        result |= {"backend": model.name, **chat(model, floating, tokenizer)}
    if output is not None:
        write_json(output, result)
    return result


def _evaluate_text(
    folder: Path,
    recipe: Recipe,
    against: str | None,
    mode: str,
    exact: bool,
    backend: str,
    threads: int | None,
) -> dict[str, Any]:
    tokenizer, floating = packed_folder.load_tokenizer(folder), None
    model = packed_folder.load(folder, integer=backend == PACKED)
    opened = Native(folder, tokenizer, threads) if backend == NATIVE else None
    if against is not None:
        floating = float_model.load_model(against).eval()
        rows = model.config.vocab_size
        check_same_vocabulary("against", against, floating, rows, tokenizer)
    held = held_out_blocks(recipe.data, tokenizer)
    scheme = recipe.quant.bits()
    result = {
        "model": str(folder),
        "scheme": recipe.quant.scheme,
        "data": source_name(recipe.data),
        "backend": backend,
        **agreement(model, held, scheme, floating, mode, exact, opened.engine if opened else None),
        "against": None,
        "evaluation": {**conditions(recipe.data, held), "mode": mode, "exact": exact},
    }
    if floating is not None:
        result["against"] = {"model": against, "perplexity": perplexity(floating, held)}
    if opened is not None:
        opened.close()
    # the engine does not tell: as measured after training
    measured = result["average_bits"] or _metrics(folder).get("average_bits")
    if measured is not None or recipe.quant.adaptive.share is None:
        result["average_bits"] = average_bits(recipe, measured)
    return result


def _evaluate_images(folder: Path, recipe: Recipe, against: str | None) -> dict[str, Any]:
    """Accuracy of a packed classifier, and with a float model how often both answer the same;
    `against` is a folder, or a safetensors file of the recipe's architecture.
    """
    model = packed_folder.load(folder)
    kind = image_model.from_config(checkpoint.read_config(folder))
    kind, (images,) = matched(kind, recipe.data, [held_out(recipe.data, kind)])
    normalizer = kind.normalizer()
    result: dict[str, Any] = {
        "model": str(folder),
        "scheme": recipe.quant.scheme,
        "data": place_of(recipe.data, kind.data),
        **accuracy(model, images, normalizer),
        "against": None,
        "evaluation": {"images": len(images), "size": kind.size, "classes": kind.classes},
    }
    if against is not None:
        weights = against.endswith(".safetensors")
        name = recipe.model.name if weights else against
        floating, other = image_model.load(name, against if weights else None)
        if other.classes != kind.classes:
            raise ModelError(
                f"against: '{against}' has {other.classes} classes, the packed model "
                f"{kind.classes}; name the float model it was made from"
            )
        number = first_difference(kind.labels, other.labels)
        if number is not None and are_named(kind.labels):
            raise ModelError(
                f"against: class {number} of '{against}' is '{other.labels[number]}', of the "
                f"packed model '{kind.labels[number]}'; name the float model it was made from"
            )
        result["against"] = {
            "model": against,
            **accuracy(floating, images, normalizer),
            "same_top": same_top(model, floating, images, normalizer),
        }
    return result


def recipe_of(folder: Path, data: str | None, blocks: int | None) -> Recipe:
    """The recipe a packed folder was made by, with the text to evaluate on: of a folder the
    held-out part, a file as a whole.
    """
    images = task_of_folder(folder).metric.of_images
    path = folder / RESOLVED
    if not path.is_file():
        raise FormatError(f"{RESOLVED}: missing from '{folder}'; copy the folder again")
    # held-out text is of the first text: the others of a mix need not be here
    values: dict[str, Any] = {"data.root": data, "data.valid_blocks": blocks, "data.mix": {}}
    if data is not None and not images and Path(data).expanduser().is_file():
        file = str(Path(data).expanduser().absolute())
        values |= {"data.root": file, "data.valid": file}
    recipe = recipes.load(path, {key: value for key, value in values.items() if value is not None})
    if data is None or "data.valid" in values:
        return recipe
    names = [name for name in (recipe.data.train, recipe.data.valid) if name is not None]
    if all(is_below(Path(data).expanduser(), name) for name in names):
        return recipe
    # the recipe's texts are not in this folder
    section = recipe.data.model_copy(update={"train": None, "valid": None})
    return recipe.model_copy(update={"data": section})


def _metrics(folder: Path) -> dict[str, Any]:
    path = folder / checkpoint.METRICS
    return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
