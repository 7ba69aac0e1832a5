"""What every run starts from: the float model, its tokenizer and the blocks of text, checked
against each other.
"""

from __future__ import annotations

import os
from dataclasses import dataclass

from transformers import PreTrainedModel, PreTrainedTokenizerBase, set_seed

from edgeqat.data.text import Blocks, BlockStream, load_blocks
from edgeqat.errors import DataError, ModelError, UsageError
from edgeqat.hf import source
from edgeqat.hf.model import check_family
from edgeqat.recipe import DataSection, Recipe

DATA_VARIABLE = "EDGEQAT_DATA"


@dataclass
class Inputs:
    """Model, tokenizer, training and held-out blocks of a run."""

    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    train: Blocks | BlockStream
    valid: Blocks


def with_data_root(data: DataSection) -> DataSection:
    """The data section with its root from EDGEQAT_DATA when none is given."""
    root = data.root or os.environ.get(DATA_VARIABLE) or None
    return data.model_copy(update={"root": root})


def load_inputs(recipe: Recipe) -> Inputs:
    """Load and cross-check everything a run needs; seeds every generator first."""
    set_seed(recipe.seed)
    if recipe.quant.bits().is_float:
        raise UsageError(
            "scheme: w16a16kv16 leaves everything in float; write for example --w4a8kv4"
        )
    data = with_data_root(recipe.data)
    model = source.load_model(recipe.model.name, recipe.model.weights)
    check_family(model)
    longest = model.config.max_position_embeddings
    if data.context > longest:
        raise DataError(
            f"data.context: {data.context} exceeds the model's {longest} positions; lower it"
        )
    tokenizer = source.load_tokenizer(recipe.model.name)
    train, valid = load_blocks(data, tokenizer)
    check_vocabulary(tokenizer, model)
    return Inputs(model, tokenizer, train, valid)


def load_teacher(name: str, student: PreTrainedModel) -> PreTrainedModel:
    """Another model as teacher; its vocabulary must be the student's."""
    teacher = source.load_model(name)
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
