"""Text from a packed folder, streamed piece by piece: on the native engine, or through
transformers' generate() for what only torch runs; torch is imported for that alone.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Iterator
from pathlib import Path
from threading import Thread
from typing import Any

from edgeqat import checkpoint, native
from edgeqat.errors import UsageError
from edgeqat.families import positions_of
from edgeqat.pipeline.folder_tokenizer import FolderTokenizer
from edgeqat.runtime import tokenizer as tokenizer_files
from edgeqat.runtime.engine import Engine, engine_for
from edgeqat.runtime.sampling import Sampling
from edgeqat.runtime.tokenizer import Tokenizer

ENGINES = ("native", "torch")
_UNFINISHED = "\ufffd"  # what a tokenizer gives for the first bytes of a character
_logger = logging.getLogger("edgeqat")


def generate(
    folder: Path,
    prompt: str,
    max_tokens: int,
    temperature: float = 0.0,
    top_k: int = 0,
    top_p: float = 1.0,
    seed: int = 0,
    engine: str = "native",
    chat: bool = False,
) -> Iterator[str]:
    """Pieces of text that continue `prompt`, or with `chat` answer it through the model's chat
    template; temperature 0 is greedy.
    """
    if engine not in ENGINES:
        raise UsageError(f"engine: '{engine}' is unknown; choose from {', '.join(ENGINES)}")
    config = check_text_model(folder)
    if not prompt:
        raise UsageError("prompt: it is empty; give at least one character")
    tokenizer: Tokenizer | FolderTokenizer
    if chat:
        tokenizer = FolderTokenizer(folder)
        tokenizer.check_template("leave out --chat")
        ids = tokenizer.template([{"role": "user", "content": prompt}])
    else:
        tokenizer = _tokenizer(folder)
        ids = tokenizer.encode(prompt)
    longest = positions_of(config)
    if not ids:
        raise UsageError("prompt: it has no tokens; give other text")
    if len(ids) + max_tokens > longest:
        raise UsageError(
            f"max-tokens: {len(ids)} prompt tokens and {max_tokens} new ones exceed the model's "
            f"{longest} positions; shorten one of them"
        )
    sampling = Sampling(temperature, top_k, top_p, seed)
    opened = _open(folder, len(ids) + max_tokens) if engine == "native" else None
    if opened is None:
        yield from _torch_pieces(folder, ids, max_tokens, sampling)
        return
    with opened:
        yield from pieces(tokenizer, opened.generate(ids, max_tokens, *sampling))


def check_text_model(folder: Path) -> dict[str, Any]:
    """The configuration of a packed folder of sound files that holds a language model."""
    config = checkpoint.verify(folder)
    if checkpoint.IMAGE in config:
        raise UsageError(f"folder: '{folder}' holds an image classifier; use `edgeqat eval` on it")
    return config


def _tokenizer(folder: Path) -> Tokenizer | FolderTokenizer:
    """tokenizer.json without transformers; what else a folder may hold, with it."""
    tokenizer_files.check(folder)
    return (Tokenizer if (folder / tokenizer_files.FILE).is_file() else FolderTokenizer)(folder)


def _open(folder: Path, tokens: int) -> Engine | None:
    """The native engine with room for so many tokens; None, saying so, where torch has to do."""
    if native.library() is None:
        return None
    try:
        return engine_for(folder, tokens)
    except native.UnsupportedModel as error:
        _logger.warning("engine: %s; using torch, slower", error)
        return None


def pieces(tokenizer: Tokenizer | FolderTokenizer, tokens: Iterable[int]) -> Iterator[str]:
    """Text of token ids as it becomes whole."""
    return (text for text in text_added(tokenizer, tokens) if text)


def text_added(tokenizer: Tokenizer | FolderTokenizer, tokens: Iterable[int]) -> Iterator[str]:
    """What each token adds to the text, and at last what was held back: a token alone may be half a
    character, and its leading blank depends on the token before.
    """
    ids: list[int] = []
    before, given = 0, 0  # tokens that were text already, and the first of the last piece

    def text(end: int) -> str:
        return tokenizer.decode(ids[before:end])

    for token in tokens:
        ids.append(token)
        whole = text(len(ids))
        if whole.endswith(_UNFINISHED):
            yield ""
            continue
        yield whole[len(text(given)) :]
        before, given = given, len(ids)
    if given < len(ids):
        yield text(len(ids))[len(text(given)) :]


def _torch_pieces(
    folder: Path, ids: list[int], max_tokens: int, sampling: Sampling
) -> Iterator[str]:
    """The same through transformers' generate(), in a thread that feeds the streamer."""
    import torch
    from transformers import TextIteratorStreamer, set_seed

    from edgeqat.hf import packed_folder
    from edgeqat.hf.generation import reset_generation_config

    tokenizer: Any = packed_folder.load_tokenizer(folder)
    model: Any = packed_folder.load(folder, verify=False)  # verified already
    reset_generation_config(model)
    options = sampling.options()
    if options["do_sample"]:
        set_seed(sampling.seed)
    streamer = TextIteratorStreamer(tokenizer, skip_prompt=True, skip_special_tokens=True)
    inputs = torch.tensor([ids])
    options |= {"inputs": inputs, "attention_mask": torch.ones_like(inputs)}
    options |= {"max_new_tokens": max_tokens, "streamer": streamer}
    pad = model.config.eos_token_id if model.config.pad_token_id is None else None
    if pad is not None:
        options["pad_token_id"] = pad if isinstance(pad, int) else pad[0]
    failures: list[BaseException] = []

    def work() -> None:
        try:
            model.generate(**options)
        except BaseException as error:
            failures.append(error)
            streamer.end()

    worker = Thread(target=work, daemon=True)
    worker.start()
    yield from streamer
    worker.join()
    if failures:
        raise failures[0]
