"""What a run of a language model starts from: the float model, its tokenizer and the blocks of
text, checked against each other.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase, set_seed

from edgeqat.coreset.samples import BlockSamples
from edgeqat.data.sources import source_name
from edgeqat.data.text import (
    Blocks,
    BlockStream,
    load_blocks,
)
from edgeqat.errors import DataError, ModelError, RecipeError, UsageError
from edgeqat.evaluate.divergence import divergence
from edgeqat.evaluate.metric import PERPLEXITY
from edgeqat.evaluate.perplexity import blocks_at_once, conditions, perplexity, recovered
from edgeqat.export import llama
from edgeqat.families import family_of
from edgeqat.hf import float_model, own_layers, packed_folder
from edgeqat.hf.model import check_family
from edgeqat.nn.half import keep_half
from edgeqat.pipeline.architecture import build, train_tokenizer
from edgeqat.pipeline.task import Score, Task
from edgeqat.recipe.quant import QuantSection
from edgeqat.recipe.recipe import Recipe
from edgeqat.train import processes
from edgeqat.train.correction import Correction
from edgeqat.train.guidance import Guidance
from edgeqat.train.objective import Objective

_CALIBRATION_TOKENS = 2048  # of one forward pass
_APART_TOKENS = 8192

logger = logging.getLogger(__name__)


@dataclass
class TextTask(Task):
    """Model, teacher (None: the model's own float weights), tokenizer and blocks of a run."""

    metric = PERPLEXITY

    model: PreTrainedModel
    teacher: PreTrainedModel | None
    tokenizer: PreTrainedTokenizerBase
    train: Blocks | BlockStream
    valid: Blocks
    load: Callable[[], tuple[Any, Any]] | None = None
    _apart: Blocks | None = None

    def describe(self) -> str:
        held = f"{len(self.valid)} held-out blocks of {self.valid.ids.shape[1]} tokens"
        if isinstance(self.train, Blocks):
            return f"{len(self.train)} training blocks, {held}"
        return f"streaming, {held}"

    def text(self) -> tuple[Tensor, list[str]]:
        ids = self.valid.ids[len(self.valid) // 2]
        return ids, [str(self.tokenizer.decode([id])) for id in ids.tolist()]

    def source(self, recipe: Recipe) -> str:
        return source_name(recipe.data)

    @property
    def apart(self) -> Blocks:
        """Blocks that settings are chosen on: none of the training text's, once keep_apart() was
        called.
        """
        return self.valid if self._apart is None else self._apart

    def keep_apart(self) -> None:
        """Take a few blocks out of the training text, where it can spare them and is no stream."""
        if isinstance(self.train, Blocks) and self._apart is None:
            blocks = self.train
            count = min(max(1, _APART_TOKENS // blocks.ids.shape[1]), len(blocks) // 8)
            taken = torch.zeros(len(blocks), dtype=torch.bool)
            taken[torch.linspace(0, len(blocks) - 1, count).long()] = True
            if count:
                self._apart, self.train = blocks.part(taken), blocks.part(~taken)

    def divergence(self, model: nn.Module) -> float:
        """KL to the float model on the blocks apart, in nats a token."""
        self.bring_back()
        return divergence(model, self.model, self.apart)

    def evaluate(self, model: nn.Module) -> Score:
        return {"perplexity": perplexity(model, self.valid)}

    def conditions(self, recipe: Recipe) -> dict[str, Any]:
        return conditions(recipe.data, self.valid)

    def gap(self, score: Score, floating: Score) -> float:
        return math.log(score["perplexity"] / floating["perplexity"])

    def recovered(self, floating: Score, ptq: Score, qat: Score) -> float | None:
        return recovered(floating["perplexity"], ptq["perplexity"], qat["perplexity"])

    def objective(self, recipe: Recipe, teacher: nn.Module | None) -> Objective:
        correct = None if teacher is None else recipe.correct
        return Objective(recipe.distill, teacher, recipe.guide, correct)

    def step_tokens(self, recipe: Recipe) -> int:
        train = recipe.train
        return train.batch_size * train.accumulation * processes.count() * recipe.data.context

    def samples(self, recipe: Recipe) -> BlockSamples:
        if not isinstance(self.train, Blocks):
            raise UsageError(
                "coreset: streamed text has no samples to select from; set data.streaming to false"
            )
        return BlockSamples(self.train)

    def calibration(self, recipe: Recipe) -> Iterable[Any]:
        """Blocks of token ids, as many as a training step has, however it is split into batches and
        processes; a few at a time. With the positions of samples that do not see each other.
        """
        train = recipe.train
        size = train.batch_size * train.accumulation * processes.count()
        wanted = recipe.quant.activation.calibration_batches * size
        if isinstance(self.train, Blocks):
            blocks = self.train.evenly(min(wanted, len(self.train)))
        else:
            rows = [block["input_ids"] for block in islice(self.train, wanted)]
            blocks = Blocks(torch.stack(rows))
        at_once = blocks_at_once(self.model, recipe.data.context, _CALIBRATION_TOKENS)
        device = self.model.device
        for start in range(0, len(blocks), at_once):
            part = slice(start, start + at_once)
            ids = blocks.ids[part].to(device)
            if blocks.positions is None:
                yield ids
            else:
                yield {"input_ids": ids, "position_ids": blocks.positions[part].to(device)}

    def batch(self, size: int) -> dict[str, Tensor]:
        blocks = self.train if isinstance(self.train, Blocks) else self.valid
        return blocks[slice(size)]

    @torch.no_grad()
    def outputs(self, model: nn.Module) -> Tensor:
        return model.eval()(input_ids=self.valid.ids[:1], use_cache=False).logits

    def write(self, folder: Path, model: Any, quant: QuantSection) -> None:
        packed_folder.write(folder, model, quant, self.tokenizer)

    def seal(self, folder: Path, model: Any, quant: QuantSection, files: dict[str, str]) -> None:
        packed_folder.seal(folder, model, quant, files)

    def untrained(self, recipe: Recipe) -> PreTrainedModel:
        assert recipe.architecture is not None
        return build(recipe.architecture, self.tokenizer)

    def write_float(self, folder: Path, model: Any, recipe: Recipe) -> None:
        nn.Module.to(model, "cpu", self.stored_dtype(recipe))
        model.save_pretrained(folder)
        self.tokenizer.save_pretrained(folder)

    def stored_dtype(self, recipe: Recipe) -> torch.dtype:
        assert recipe.architecture is not None
        dtype: torch.dtype = getattr(torch, recipe.architecture.dtype)
        return dtype


def untrained_text(recipe: Recipe) -> TextTask:
    """What `edgeqat train` starts from: a random model of the recipe's architecture, a tokenizer
    trained on its text, and the blocks.
    """
    assert recipe.architecture is not None
    tokenizer = train_tokenizer(recipe.data, recipe.architecture.vocab_size)
    train, valid = load_blocks(recipe.data, tokenizer)
    return TextTask(build(recipe.architecture, tokenizer), None, tokenizer, train, valid)


def load_text(recipe: Recipe) -> TextTask:
    """What load_task gives for a language model."""
    set_seed(recipe.seed)
    data = recipe.data
    check_family(float_model.load_config(recipe.model.name))
    model = _load_float(recipe)
    if recipe.quant.kv.llama_cpp or recipe.quant.activation.mode == "q8_0":
        reason = llama.unsupported(model.config.to_dict(), recipe.quant.bits())
        if reason is not None:
            raise UsageError(f"target: gguf cannot hold this model ({reason}); leave out --target")
    longest = model.config.max_position_embeddings
    if data.context > longest:
        raise DataError(
            f"data.context: {data.context} exceeds the model's {longest} positions; lower it"
        )
    tokenizer = float_model.load_tokenizer(recipe.model.name)
    kind = model.config.model_type
    if family_of(kind).needs_bos and not data.bos:
        logger.warning(
            "data.bos: a %s model predicts badly without BOS; add --set data.bos=true", kind
        )
    train, valid = load_blocks(data, tokenizer)
    float_model.check_vocabulary(tokenizer, model)
    name = recipe.distill.teacher
    if name and not needs_teacher(recipe):
        raise RecipeError(
            f"distill.teacher: '{name}' teaches nothing with distill.weight 0; leave it out or "
            "raise the weight"
        )
    if recipe.distill.kept is not None and isinstance(train, BlockStream):
        raise RecipeError(
            "distill.kept: nothing is kept of a stream; leave it out or set data.streaming to false"
        )
    teacher = load_teacher(name, model, tokenizer) if name else None
    Guidance(recipe.guide).check(model, teacher or model)
    Correction(recipe.correct).check(model, teacher or model)

    def load() -> tuple[PreTrainedModel, PreTrainedModel | None]:
        again = _load_float(recipe)
        return again, load_teacher(name, again, tokenizer) if name else None

    return TextTask(model, teacher, tokenizer, train, valid, load)


def _load_float(recipe: Recipe) -> PreTrainedModel:
    model = float_model.load_model(recipe.model.name, recipe.model.weights)
    own_layers.to_plain(model)
    return keep_half(model)


def needs_teacher(recipe: Recipe) -> bool:
    """Whether the run trains against the float model, or another teacher."""
    helped = Guidance(recipe.guide).needs_teacher or recipe.correct.weight > 0
    return recipe.distill.weight > 0 or helped


def load_teacher(
    name: str, student: PreTrainedModel, tokenizer: PreTrainedTokenizerBase
) -> PreTrainedModel:
    """Another model as teacher; its tokenizer must be the student's."""
    teacher = keep_half(float_model.load_model(name))
    check_same_vocabulary("distill.teacher", name, teacher, student.config.vocab_size, tokenizer)
    return teacher


def check_same_vocabulary(
    field: str,
    name: str,
    other: PreTrainedModel,
    model_rows: int,
    tokenizer: PreTrainedTokenizerBase,
) -> None:
    """Refuse to compare the logits of a model, (T, model_rows), with those of one that has other
    tokens or fewer rows; more rows are padding, which is cut off. Without a tokenizer beside it,
    the number of rows decides.
    """
    rows = other.config.vocab_size
    try:
        same = float_model.load_tokenizer(name).get_vocab() == tokenizer.get_vocab()
    except ModelError:
        same = rows == model_rows
    if rows < model_rows or (not same and rows != model_rows):
        raise ModelError(
            f"{field}: '{name}' has a vocabulary of {rows}, the model one of {model_rows}; "
            "choose one with the same tokenizer"
        )
    if not same:
        raise ModelError(
            f"{field}: '{name}' has other tokens than the model; choose one with the same tokenizer"
        )
