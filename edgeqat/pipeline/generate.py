"""Text from a packed folder through transformers' generate(), streamed piece by piece."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from threading import Thread
from typing import Any

from transformers import TextIteratorStreamer, set_seed

from edgeqat.errors import UsageError
from edgeqat.hf import folder as packed_folder


def generate(
    folder: Path,
    prompt: str,
    max_tokens: int,
    temperature: float = 0.0,
    top_k: int = 0,
    top_p: float = 1.0,
    seed: int = 0,
) -> Iterator[str]:
    """Pieces of text that continue `prompt`; temperature 0 is greedy."""
    model: Any = packed_folder.load(folder)
    tokenizer = packed_folder.load_tokenizer(folder)
    inputs = tokenizer(prompt, return_tensors="pt", return_token_type_ids=False)
    used, longest = inputs["input_ids"].shape[1], model.config.max_position_embeddings
    if used == 0:
        raise UsageError("prompt: it is empty; give at least one character")
    if used + max_tokens > longest:
        raise UsageError(
            f"max-tokens: {used} prompt tokens and {max_tokens} new ones exceed the model's "
            f"{longest} "
            "positions; shorten one of them"
        )
    sampling: dict[str, float] = {"do_sample": False}
    if temperature > 0:
        sampling = {"do_sample": True, "temperature": temperature, "top_k": top_k, "top_p": top_p}
        set_seed(seed)
    streamer = TextIteratorStreamer(tokenizer, skip_prompt=True, skip_special_tokens=True)
    pad = model.config.eos_token_id if model.config.pad_token_id is None else None
    options = {**inputs, **sampling, "max_new_tokens": max_tokens, "streamer": streamer}
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
