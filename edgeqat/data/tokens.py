"""Documents to token ids: texts as they are, conversations behind the model's own chat template.

Beside each piece of ids stands which of them count in the loss: all, or of conversations the
assistant's words and what ends them alone (`data.loss: answers`).
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor

from edgeqat.data.conversation import Conversation
from edgeqat.errors import DataError

_PIECE = 1 << 20  # characters tokenized at once
_OPTIONS: dict[str, Any] = {"add_special_tokens": False, "verbose": False}


class Tokenizer(Protocol):
    """What is used of a tokenizer."""

    bos_token_id: int | None
    eos_token_id: int | None

    def __call__(self, text: str, **options: Any) -> Any: ...


class Piece(NamedTuple):
    """Token ids (n,) int64, and which of them count (n,) bool."""

    ids: Tensor
    counted: Tensor


def pieces(
    documents: Iterator[str | Conversation], tokenizer: Tokenizer, answers: bool
) -> Iterator[Piece]:
    """Token ids of documents one after the other, end-of-text between those that are plain text.
    `answers`: of conversations the answers alone count.
    """
    before: str | Conversation | None = None
    for number, document in enumerate(documents, 1):
        if isinstance(document, Conversation):
            yield _conversation(document, tokenizer, answers, number)
        else:
            if isinstance(before, str) and tokenizer.eos_token_id is not None:
                yield _counted([tokenizer.eos_token_id])
            for start, end in _cuts(document):
                yield _counted(tokenizer(document[start:end], **_OPTIONS)["input_ids"])
        before = document


def samples(
    documents: Iterator[str | Conversation], tokenizer: Tokenizer, answers: bool, bos: bool
) -> Iterator[Piece]:
    """Documents as whole pieces: behind BOS where that is asked for, with end-of-text at the end of
    plain text.
    """
    first = [tokenizer.bos_token_id] if bos and tokenizer.bos_token_id is not None else []
    last = [] if tokenizer.eos_token_id is None else [tokenizer.eos_token_id]
    for number, document in enumerate(documents, 1):
        if isinstance(document, Conversation):
            parts = [_conversation(document, tokenizer, answers, number)]
        else:
            parts = [*pieces(iter([document]), tokenizer, answers), _counted(last)]
        yield joined([_counted(first), *parts])


def joined(parts: list[Piece]) -> Piece:
    """Pieces, one behind the other."""
    ids = [part.ids for part in parts] or [torch.zeros(0, dtype=torch.int64)]
    counted = [part.counted for part in parts] or [torch.zeros(0, dtype=torch.bool)]
    return Piece(torch.cat(ids), torch.cat(counted))


def _counted(ids: list[int]) -> Piece:
    return Piece(torch.tensor(ids, dtype=torch.int64), torch.ones(len(ids), dtype=torch.bool))


def _cuts(text: str) -> Iterator[tuple[int, int]]:
    """Parts of a text that are tokenized at once, cut behind lines where it has any."""
    start = 0
    while start < len(text):
        end = start + _PIECE
        newline = text.rfind("\n", start, end) + 1 if end < len(text) else len(text)
        end = newline if newline > start else end
        yield start, end
        start = end


def _conversation(document: Conversation, tokenizer: Any, answers: bool, number: int) -> Piece:
    messages = list(document.messages)
    text = _templated(tokenizer, messages, number)
    if not answers:
        return _counted(tokenizer(text, **_OPTIONS)["input_ids"])
    if not tokenizer.is_fast:
        raise DataError(
            "data.loss: 'answers' needs a tokenizer that tells where tokens begin, a tokenizer.json"
            "; leave it at 'all'"
        )
    spans = list(_answers(tokenizer, messages, text, number))
    encoded = tokenizer(text, return_offsets_mapping=True, **_OPTIONS)
    places = torch.tensor(encoded["offset_mapping"], dtype=torch.int64).reshape(-1, 2)
    counted = torch.zeros(len(places), dtype=torch.bool)
    for start, end in spans:
        counted |= (places[:, 1] > start) & (places[:, 0] < end)
    return Piece(torch.tensor(encoded["input_ids"], dtype=torch.int64), counted)


def _answers(
    tokenizer: Any, messages: list[dict[str, str]], text: str, number: int
) -> Iterator[tuple[int, int]]:
    """Where in the text of a conversation the assistant's words are, with what ends them."""
    for at, message in enumerate(messages):
        if message["role"] != "assistant":
            continue
        before = _templated(tokenizer, messages[:at], number, add_generation_prompt=True)
        until = _templated(tokenizer, messages[: at + 1], number)
        if not (text.startswith(before) and text.startswith(until) and len(until) > len(before)):
            raise DataError(
                "data.loss: the model's chat template does not tell where an answer begins; leave "
                "it at 'all'"
            )
        yield len(before), len(until)


def _templated(tokenizer: Any, messages: list[dict[str, str]], number: int, **options: Any) -> str:
    if not getattr(tokenizer, "chat_template", None):
        raise DataError(
            "data.train: it holds conversations, and the model's tokenizer has no chat template; "
            "give plain text"
        )
    try:
        return str(tokenizer.apply_chat_template(messages, tokenize=False, **options))
    except Exception as error:  # whatever a template of someone's own raises
        reason = " ".join(str(error).split())[:120] or type(error).__name__
        raise DataError(
            f"data.train: the model's chat template refuses conversation {number} ({reason}); "
            "leave it out or change its roles"
        ) from None
