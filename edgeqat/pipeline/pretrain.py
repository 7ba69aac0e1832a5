"""Float models: train a Llama of a recipe's `architecture` from scratch and write a Hugging Face
folder.

The tokenizer is a byte-level BPE trained on the same text, through the `tokenizers` library.
"""

from __future__ import annotations

import json
import logging
import time
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast, set_seed

from edgeqat import recipe as recipes
from edgeqat.checkpoint import atomic_folder
from edgeqat.data.text import documents, load_blocks, training_source
from edgeqat.errors import RecipeError
from edgeqat.evaluate.perplexity import conditions, perplexity
from edgeqat.pipeline.inputs import with_data_root
from edgeqat.pipeline.quantize import METRICS, RECORDS, RESOLVED, data_name, peak_rss_bytes
from edgeqat.recipe import ArchitectureSection, DataSection, Recipe
from edgeqat.train.callbacks import Listener
from edgeqat.train.objective import Objective
from edgeqat.train.optim import with_rates
from edgeqat.train.trainer import QATTrainer

logger = logging.getLogger(__name__)

FROM_SCRATCH = 1.0  # nats: everything is still to learn
UNKNOWN, BOS, EOS = "<unk>", "<s>", "</s>"


def pretrain(
    recipe: Recipe, output: Path, overwrite: bool = False, listener: Listener | None = None
) -> dict[str, Any]:
    """Train a float model and write it to `output`; returns what its metrics.json holds."""
    recipe, shape = with_data_root(recipe), recipe.architecture
    if shape is None:
        raise RecipeError("architecture: the recipe has none; `edgeqat train` needs a float recipe")
    with atomic_folder(output, overwrite) as folder:
        set_seed(recipe.seed)
        data = recipe.data
        tokenizer = train_tokenizer(data, shape.vocab_size)
        train, valid = load_blocks(data, tokenizer)
        model = build(shape, tokenizer)
        parameters = sum(parameter.numel() for parameter in model.parameters())
        logger.info("%.2fM parameters, %d held-out blocks", parameters / 1e6, len(valid))
        recipe = recipe.model_copy(update={"train": with_rates(recipe.train, FROM_SCRATCH)})
        start = time.perf_counter()
        objective = Objective(recipe.distill, teacher=None)
        trainer = QATTrainer(model, recipe, train, objective, "float", folder / RECORDS, listener)
        trainer.run()
        seconds = time.perf_counter() - start
        metrics = {
            "model": recipe.description,
            "data": data_name(data),
            "seed": recipe.seed,
            "parameters": parameters,
            "float": {"perplexity": perplexity(model, valid)},
            "train": {
                "steps": recipe.train.steps,
                "seconds": round(seconds, 1),
                "peak_rss_bytes": peak_rss_bytes(),
            },
            "evaluation": conditions(data, valid),
        }
        nn.Module.to(model, "cpu", getattr(torch, shape.dtype))
        model.save_pretrained(folder)
        tokenizer.save_pretrained(folder)
        (folder / METRICS).write_text(json.dumps(metrics, indent=2) + "\n", encoding="utf-8")
        (folder / RESOLVED).write_text(recipes.dump(recipe), encoding="utf-8")
    return metrics


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
