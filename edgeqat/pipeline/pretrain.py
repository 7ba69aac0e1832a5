"""Float models: train a Llama of a recipe's `architecture` from scratch and write a Hugging Face
folder (image classifiers: pipeline/image_pretrain).

The tokenizer is a byte-level BPE trained on the same text, through the `tokenizers` library.
"""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast, set_seed

from edgeqat.checkpoint import METRICS
from edgeqat.data.documents import documents
from edgeqat.data.text import load_blocks, source_name, training_source
from edgeqat.errors import RecipeError
from edgeqat.evaluate.perplexity import conditions, perplexity
from edgeqat.memory import peak_rss_bytes
from edgeqat.output import write_json
from edgeqat.pipeline.image_pretrain import pretrain_images
from edgeqat.pipeline.image_task import is_image_model
from edgeqat.pipeline.load import with_data_root
from edgeqat.pipeline.run import check_start, identity, open_run
from edgeqat.pipeline.sampling import FROM_SCRATCH
from edgeqat.recipe import files as recipes
from edgeqat.recipe.data import ArchitectureSection, DataSection
from edgeqat.recipe.files import RESOLVED
from edgeqat.recipe.recipe import Recipe
from edgeqat.train import processes, sharding
from edgeqat.train.callbacks import Listener
from edgeqat.train.guidance import Guidance
from edgeqat.train.horizon import in_steps
from edgeqat.train.objective import Objective
from edgeqat.train.optim import with_rates
from edgeqat.train.trainer import QATTrainer

logger = logging.getLogger(__name__)

UNKNOWN, BOS, EOS = "<unk>", "<s>", "</s>"


def pretrain(
    recipe: Recipe, output: Path, overwrite: bool = False, listener: Listener | None = None
) -> dict[str, Any]:
    """Train a float model and write it to `output`, or continue where the same run stopped; returns
    what its metrics.json holds.
    """
    recipe, shape = with_data_root(recipe), recipe.architecture
    _check(recipe)
    if shape is None and recipe.quant.bits().is_float and is_image_model(recipe.model.name):
        return pretrain_images(recipe, output, overwrite, listener)
    if shape is None:
        raise RecipeError("architecture: the recipe has none; `edgeqat train` needs a float recipe")
    check_start(output, overwrite)
    set_seed(recipe.seed)
    data = recipe.data
    tokenizer = train_tokenizer(data, shape.vocab_size)
    train, valid = load_blocks(data, tokenizer)
    model = build(shape, tokenizer)
    parameters = sum(parameter.numel() for parameter in model.parameters())
    logger.info("%.2fM parameters, %d held-out blocks", parameters / 1e6, len(valid))
    recipe = in_steps(recipe, train)
    recipe = recipe.model_copy(update={"train": with_rates(recipe.train, FROM_SCRATCH)})
    with open_run(output, overwrite, identity("train", recipe, "", train, valid)) as run:
        done = processes.broadcast_from_first(run.metrics)
        if done is not None:
            return done
        objective = Objective(recipe.distill, teacher=None)
        trainer = QATTrainer(
            model, recipe, train, objective, "float", run.records, listener,
            run.checkpoints("float"),
        )  # fmt: skip
        trainer.run()
        told = trainer.metrics()
        if sharding.is_sharded(model):
            model = sharding.gathered(model, build(shape, tokenizer))
        dtype = getattr(torch, shape.dtype)
        _round(model, dtype)
        metrics: dict[str, Any] = {
            "model": recipe.description,
            "data": source_name(data),
            "seed": recipe.seed,
            "parameters": parameters,
            "float": {"perplexity": run.result("float", lambda: perplexity(model, valid))},
            "train": {**told, "peak_rss_bytes": peak_rss_bytes()},
            "evaluation": conditions(data, valid),
        }
        if processes.is_first():
            with run.finished(metrics) as folder:
                nn.Module.to(model, "cpu", dtype)
                model.save_pretrained(folder)
                tokenizer.save_pretrained(folder)
                write_json(folder / METRICS, metrics)
                (folder / RESOLVED).write_text(recipes.dump(recipe), encoding="utf-8")
    return metrics


def _check(recipe: Recipe) -> None:
    """Refuse what training from scratch would not heed."""
    shape = recipe.architecture
    unheeded = {
        "coreset": recipe.coreset.is_on,
        "model.weights": recipe.model.weights is not None,
        "train.method": recipe.train.method != "full",
        "distill.teacher": recipe.distill.teacher is not None,
        "guide": Guidance(recipe.guide).is_on,
        "correct.weight": recipe.correct.weight > 0,
    }
    for field, given in unheeded.items():
        if given:
            raise RecipeError(
                f"{field}: a float model is trained from scratch on all data; leave it out"
            )
    if shape is not None and recipe.data.context > shape.positions:
        raise RecipeError(
            f"data.context: {recipe.data.context} exceeds the {shape.positions} positions of "
            "architecture.positions; lower it or raise those"
        )


def _round(model: nn.Module, dtype: torch.dtype) -> None:
    """Round the parameters, in place, to what the folder will hold, which is what is measured."""
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(parameter.to(dtype))


def train_tokenizer(data: DataSection, size: int) -> PreTrainedTokenizerFast:
    """A byte-level BPE of `size` entries, trained on the training text."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

    tokenizer = Tokenizer(models.BPE(unk_token=UNKNOWN))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=size,
        special_tokens=[UNKNOWN, BOS, EOS],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(documents(training_source(data), data.text_field), trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, unk_token=UNKNOWN, bos_token=BOS, eos_token=EOS
    )


def build(shape: ArchitectureSection, tokenizer: PreTrainedTokenizerFast) -> LlamaForCausalLM:
    """A random Llama of a recipe's shape."""
    return LlamaForCausalLM(
        LlamaConfig(
            vocab_size=shape.vocab_size,
            hidden_size=shape.hidden_size,
            intermediate_size=shape.ffn,
            num_hidden_layers=shape.layers,
            num_attention_heads=shape.heads,
            num_key_value_heads=shape.kv_heads,
            head_dim=shape.head_dim,
            max_position_embeddings=shape.positions,
            tie_word_embeddings=shape.tied,
            attention_dropout=shape.dropout,
            bos_token_id=tokenizer.bos_token_id,
            eos_token_id=tokenizer.eos_token_id,
        )
    )
