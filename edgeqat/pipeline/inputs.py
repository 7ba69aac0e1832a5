"""What every run starts from: the float model, its tokenizer and the blocks of text, checked
against each other.
"""

from __future__ import annotations

import os
from dataclasses import dataclass

from transformers import PreTrainedModel, PreTrainedTokenizerBase, set_seed

from edgeqat.data.text import DEMO, Blocks, BlockStream, load_blocks
from edgeqat.errors import DataError, ModelError, UsageError
from edgeqat.hf import source
from edgeqat.hf.model import check_family
from edgeqat.nn.half import keep_half
from edgeqat.recipe import Recipe
from edgeqat.train.guidance import Guidance

DATA_VARIABLE = "EDGEQAT_DATA"


@dataclass
class Inputs:
    """Model, teacher (None: the model's own float weights), tokenizer and blocks of a run."""

    model: PreTrainedModel
    teacher: PreTrainedModel | None
    tokenizer: PreTrainedTokenizerBase
    train: Blocks | BlockStream
    valid: Blocks


def with_data_root(recipe: Recipe) -> Recipe:
    """The recipe with its data root from EDGEQAT_DATA when none is given (the demo has its own)."""
    data = recipe.data
    if data.root is None and data.train != DEMO:
        data = data.model_copy(update={"root": os.environ.get(DATA_VARIABLE) or None})
    return recipe.model_copy(update={"data": data})


def load_inputs(recipe: Recipe) -> Inputs:
    """Load and cross-check everything a run needs; seeds every generator first."""
    set_seed(recipe.seed)
    if recipe.quant.bits().is_float:
        raise UsageError(
            "scheme: w16a16kv16 leaves everything in float; write for example --w4a8kv4"
        )
    data = recipe.data
    model = keep_half(source.load_model(recipe.model.name, recipe.model.weights))
    check_family(model)
    longest = model.config.max_position_embeddings
    if data.context > longest:
        raise DataError(
            f"data.context: {data.context} exceeds the model's {longest} positions; lower it"
        )
    tokenizer = source.load_tokenizer(recipe.model.name)
    train, valid = load_blocks(data, tokenizer)
    check_vocabulary(tokenizer, model)
    name = recipe.distill.teacher if needs_teacher(recipe) else None
    teacher = load_teacher(name, model) if name else None
    Guidance(recipe.guide).check(model, teacher or model)
    return Inputs(model, teacher, tokenizer, train, valid)


def needs_teacher(recipe: Recipe) -> bool:
    """Whether the run trains against the float model, or another teacher."""
    return recipe.distill.weight > 0 or Guidance(recipe.guide).needs_teacher


def load_teacher(name: str, student: PreTrainedModel) -> PreTrainedModel:
    """Another model as teacher; its vocabulary must be the student's."""
    teacher = keep_half(source.load_model(name))
    if teacher.config.vocab_size != student.config.vocab_size:
        raise ModelError(
            f"distill.teacher: '{name}' has a vocabulary of {teacher.config.vocab_size}, the "
            "model one of "
            f"{student.config.vocab_size}; choose a teacher with the same tokenizer"
        )
    return teacher


def check_vocabulary(tokenizer: PreTrainedTokenizerBase, model: PreTrainedModel) -> None:
    """Refuse a tokenizer that makes ids the model has no embedding for."""
    if len(tokenizer) > model.config.vocab_size:
        raise ModelError(
            f"model: the tokenizer has {len(tokenizer)} entries, the embedding only "
            f"{model.config.vocab_size}; use the tokenizer the model was trained with"
        )
