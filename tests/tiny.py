"""Tiny random models, tokenizers and texts: what the tests quantize. Everything is seeded."""

from __future__ import annotations

import random
from functools import cache

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedModel, PreTrainedTokenizerFast

VOCABULARY = 320
_WORDS = "the old river runs past a small mill and every morning some birds sing near its wheel"


def shape(**changes) -> dict:
    """Configuration of a two-layer model with grouped-query attention and tied embeddings."""
    return {
        "vocab_size": VOCABULARY,
        "hidden_size": 64,
        "intermediate_size": 96,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 16,
        "max_position_embeddings": 128,
        "tie_word_embeddings": True,
        "bos_token_id": 1,
        "eos_token_id": 2,
        **changes,
    }


def llama(seed: int = 0, **changes) -> LlamaForCausalLM:
    """A random float32 Llama; its biases and norms are random too, so that none of them hides."""
    torch.manual_seed(seed)
    return _scatter(LlamaForCausalLM(LlamaConfig(**shape(**changes))))


def model(kind: type, config: type, seed: int = 0, **changes) -> PreTrainedModel:
    """A random model of another family."""
    torch.manual_seed(seed)
    return _scatter(kind(config(**shape(**changes))))


def _scatter(made: PreTrainedModel) -> PreTrainedModel:
    with torch.no_grad():
        for parameter in made.parameters():
            if parameter.ndim < 2:
                parameter.add_(0.1 * torch.randn_like(parameter))
            else:
                parameter.mul_(3)  # sharper attention than the initialisation of transformers
    return made.eval()


def ids(batch: int = 2, length: int = 24, seed: int = 0) -> torch.Tensor:
    """Random token ids (B, T), none of them special."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(3, VOCABULARY, (batch, length), generator=generator)


def drift(prepared: torch.nn.Module, seed: int = 0) -> torch.nn.Module:
    """A prepared model after what training does to it: scales and weights have moved."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in prepared.named_parameters():
            noise = torch.rand(parameter.shape, generator=generator)
            if name.endswith("quantizer.scale"):
                parameter.mul_(0.8 + 0.4 * noise)
            elif parameter.ndim == 2:
                parameter.add_(0.02 * (noise - 0.5))
    return prepared


def text(words: int = 4000, seed: int = 0) -> str:
    """English-looking lines without meaning."""
    choose = random.Random(seed)
    lines, known = [], _WORDS.split()
    while words > 0:
        lines.append(" ".join(choose.choice(known) for _ in range(12)) + ".")
        words -= 12
    return "\n".join(lines) + "\n"


@cache
def tokenizer(size: int = VOCABULARY) -> PreTrainedTokenizerFast:
    """A byte-level BPE of `size` entries."""
    made = Tokenizer(models.BPE(unk_token="<unk>"))
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=size,
        special_tokens=["<unk>", "<s>", "</s>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    made.train_from_iterator([text()], trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=made, unk_token="<unk>", bos_token="<s>", eos_token="</s>"
    )
