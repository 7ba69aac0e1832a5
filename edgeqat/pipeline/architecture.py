"""A float Llama of a recipe's `architecture`, and the byte-level BPE tokenizer trained on its text
through the `tokenizers` library.
"""

from __future__ import annotations

from transformers import (
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedTokenizerBase,
    PreTrainedTokenizerFast,
)

from edgeqat.data.documents import plain_documents
from edgeqat.data.sources import training_source
from edgeqat.recipe.data import ArchitectureSection, DataSection

UNKNOWN, BOS, EOS = "<unk>", "<s>", "</s>"


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
    tokenizer.train_from_iterator(plain_documents(training_source(data), data.text_field), trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, unk_token=UNKNOWN, bos_token=BOS, eos_token=EOS
    )


def build(shape: ArchitectureSection, tokenizer: PreTrainedTokenizerBase) -> LlamaForCausalLM:
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
