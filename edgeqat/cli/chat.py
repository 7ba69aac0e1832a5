"""`edgeqat chat`: a conversation in the terminal, or one turn a line from a pipe."""

from __future__ import annotations

import io
import signal
import sys
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from edgeqat import log
from edgeqat.cli.options import (
    SamplingSeedOption,
    TemperatureOption,
    TopKOption,
    TopPOption,
)
from edgeqat.errors import UsageError, nearest

if TYPE_CHECKING:
    from edgeqat.pipeline.conversation import Conversation

EXAMPLES = (
    "edgeqat chat FOLDER",
    "edgeqat chat FOLDER --system 'Answer in one sentence.' --temperature 0.7 --top-p 0.9",
)
COMMANDS = {
    "/reset": "forget what was said",
    "/system": "what the model is told first: /system TEXT; without TEXT: nothing",
    "/help": "these lines",
    "/exit": "end the chat; so does Ctrl-D",
}


def command(
    folder: Annotated[Path, typer.Argument(help="Packed folder of a chat model.")],
    system: Annotated[
        str | None, typer.Option("--system", help="What the model is told first.")
    ] = None,
    max_tokens: Annotated[
        int, typer.Option("--max-tokens", min=1, help="New tokens of an answer.")
    ] = 512,
    temperature: TemperatureOption = 0.0,
    top_k: TopKOption = 0,
    top_p: TopPOption = 1.0,
    seed: SamplingSeedOption = 0,
) -> None:
    """Talk with a packed chat model on the native engine.

    Answers stream to stdout. Ctrl-C stops an answer, Ctrl-D ends the chat. From a pipe each line is
    one turn. /help lists the commands.
    """
    log.setup()
    from edgeqat.pipeline.conversation import Conversation
    from edgeqat.runtime.sampling import Sampling

    sampling = Sampling(temperature, top_k, top_p, seed)
    conversation = Conversation(folder, max_tokens, sampling, system)
    before = signal.signal(signal.SIGTERM, _stop)  # Ctrl-C ends an answer, this ends the program
    try:
        typed = sys.stdin.isatty()
        if typed:
            _say(f"{folder}: /help lists the commands, Ctrl-D ends the chat")
        for line in _typed() if typed else _piped():
            if line == "/exit":
                break
            if line.startswith("/"):
                _obey(conversation, line)
            elif line:
                _answer(conversation, line, typed)
        _say(_summary(conversation))
    finally:
        signal.signal(signal.SIGTERM, before)
        conversation.close()


def _typed() -> Iterator[str]:
    """Lines of a terminal, until its end."""
    with suppress(ImportError):
        import readline  # noqa: F401  (lines can be edited and come again)
    while True:
        try:
            yield input("> ").strip()
        except EOFError:
            print()
            return
        except KeyboardInterrupt:
            _say("\nCtrl-D or /exit ends the chat")


def _piped() -> Iterator[str]:
    if isinstance(sys.stdin, io.TextIOWrapper):
        sys.stdin.reconfigure(errors="replace")
    for line in sys.stdin:
        yield line.strip()


def _answer(conversation: Conversation, words: str, typed: bool) -> None:
    try:
        pieces = conversation.answer(words)
        for piece in pieces:
            print(piece, end="", flush=True)
    except KeyboardInterrupt:
        if not typed:
            raise
        pieces.close()
        _say("\n(stopped)")
        return
    except UsageError as error:
        _say(f"error: {error}")
        return
    print(flush=True)


def _obey(conversation: Conversation, line: str) -> None:
    name, _, words = line.partition(" ")
    if name == "/reset":
        conversation.reset()
        _say("begun anew")
    elif name == "/system":
        conversation.system = words.strip() or None
        _say("the model is told so from now on" if words.strip() else "the model is told nothing")
    elif name == "/help":
        for known, what in COMMANDS.items():
            _say(f"{known:<8} {what}")
    else:
        _say(f"'{name}' is unknown; {nearest(name, list(COMMANDS))}")


def _summary(conversation: Conversation) -> str:
    told = conversation
    speed = told.written / told.seconds if told.seconds else 0.0
    return (
        f"{told.answers} answers, {told.written} tokens, {speed:.1f} tokens/s; {told.reused} of "
        f"{told.read} prompt tokens were in the cache"
    )


def _say(words: str) -> None:
    print(words, file=sys.stderr, flush=True)


def _stop(*_: object) -> None:
    raise typer.Exit(143)
