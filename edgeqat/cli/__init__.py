"""The command line: one verb per file, errors in one line on stderr; exit code 0 (done), 1
(failed), 2 (wrong use) or 130 (interrupted).

`--w4a8kv4`, `--w2a32`, `--kv4`, ... anywhere in the arguments mean `--scheme w4a8kv4` and so on.
"""

from __future__ import annotations

import re
import signal
import sys
from typing import Annotated

import typer
from typer import exceptions

import edgeqat
from edgeqat.cli import (
    bench,
    chat,
    compare,
    coreset,
    evaluate,
    export,
    generate,
    inspect,
    manual,
    quantize,
    recipes,
    report,
    serve,
    terminal,
    train,
    verify,
)
from edgeqat.errors import EdgeQATError, UsageError

INTERRUPTED = 130  # what typer, and shells, return after Ctrl-C
_SCHEME = re.compile(r"--((?:w\d+)?(?:a\d+)?(?:kv\d+)?)")


def _examples(*lines: str) -> str:
    """The end of a help text; the mark keeps its lines apart."""
    return "\n".join(["\b", "Examples:", *(f"  {line}" for line in lines)])


app = typer.Typer(
    name="edgeqat",
    epilog=_examples(quantize.EXAMPLES[0], generate.EXAMPLES[0]),
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)


def _say_version(asked: bool) -> None:
    if asked:
        print(f"edgeqat {edgeqat.__version__}")
        raise typer.Exit


@app.callback()
def _options(
    version: Annotated[
        bool,
        typer.Option(
            "--version", callback=_say_version, is_eager=True, help="Print the version and exit."
        ),
    ] = False,
    debug: Annotated[  # for the help: run() takes it out, wherever it stands
        bool, typer.Option("--debug", help="Show where an error came from; every verb takes it.")
    ] = False,
) -> None:
    """Quantization-aware training of small language and image models for edge CPUs."""


for _name, _verb in (
    ("quantize", quantize), ("train", train), ("coreset", coreset), ("eval", evaluate),
    ("compare", compare), ("verify", verify), ("bench", bench), ("report", report),
    ("export", export), ("generate", generate), ("chat", chat), ("serve", serve),
    ("inspect", inspect), ("recipes", recipes), ("manual", manual),
):  # fmt: skip
    app.command(_name, hidden=_verb is manual, epilog=_examples(*_verb.EXAMPLES))(_verb.command)


def main() -> None:
    """Entry point of `edgeqat`."""
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # a service that stops us is a Ctrl-C
    terminal.show_what_can_be_shown()
    sys.exit(terminal.flush(run(sys.argv[1:])))


def run(arguments: list[str]) -> int:
    """Run one command line and return its exit code."""
    debug = "--debug" in arguments
    arguments = [argument for argument in arguments if argument != "--debug"] or ["--help"]
    command = typer.main.get_command(app)
    try:
        terminal.check(arguments)
        arguments = _with_scheme(arguments)
        result = command.main(args=arguments, prog_name="edgeqat", standalone_mode=False)
        if result == INTERRUPTED:
            raise KeyboardInterrupt
        return result if isinstance(result, int) else 0
    except EdgeQATError as error:
        if debug:
            raise
        return _fail(str(error), error.exit_code)
    except exceptions.TyperException as error:
        return _fail(_with_value(error), 2)
    except (exceptions.Abort, KeyboardInterrupt):
        return _fail("interrupted; nothing was written", INTERRUPTED)
    except UnicodeEncodeError as error:  # a name that was found on the way
        if debug:
            raise
        start = max(error.start - 40, 0)
        shown = ascii(error.object[start : start + 80])
        return _fail(f"text: {shown} is not {error.encoding}; rename the file or folder", 1)
    except OSError as error:
        if debug:
            raise
        place = f"file: '{error.filename}'" if error.filename else "system:"
        return _fail(f"{place} {error.strerror or error}; check paths and connections", 1)
    except (MemoryError, RuntimeError) as error:
        if debug or not _lacks_memory(error):
            raise
        return _fail(
            "memory: not enough of it; lower train.batch_size or data.context, or set "
            "train.gradient_checkpointing=true",
            1,
        )


def _with_scheme(arguments: list[str]) -> list[str]:
    """The arguments with every `--w4a8` and `--kv4` as one `--scheme w4a8kv4`."""
    short = [argument for argument in arguments if _SCHEME.fullmatch(argument) and argument != "--"]
    if not short:
        return arguments
    widths: dict[str, str] = {}
    for part, bits in re.findall(r"(kv|w|a)(\d+)", " ".join(short)):
        if widths.setdefault(part, bits) != bits:
            raise UsageError(f"scheme: {' '.join(short)} give {part} two widths; leave one out")
    if any(argument.partition("=")[0] == "--scheme" for argument in arguments):
        raise UsageError(f"scheme: both --scheme and {short[0]} are given; leave one out")
    scheme = "".join(f"{part}{widths[part]}" for part in ("w", "a", "kv") if part in widths)
    rest = [argument for argument in arguments if argument not in short]
    return [*rest[:1], f"--scheme={scheme}", *rest[1:]]


def _lacks_memory(error: Exception) -> bool:
    """torch says so in a RuntimeError, in words of its own for each kind of memory."""
    words = ("allocate memory", "out of memory")
    return isinstance(error, MemoryError) or any(one in str(error) for one in words)


def _with_value(error: exceptions.TyperException) -> str:
    """typer's message about an option, with the value it leaves out."""
    from pydantic import ValidationError

    message = error.format_message()
    refused = re.fullmatch(r"Invalid value for '([^']+)': (.*)", message, re.DOTALL)
    if refused is None or not isinstance(error.__cause__, ValidationError):
        return message
    reason = refused[2][:1].lower() + refused[2][1:]
    return f"{refused[1]}: '{error.__cause__.errors()[0]['input']}' {reason}"


def _fail(message: str, code: int) -> int:
    print(f"error: {' '.join(message.split())}", file=sys.stderr)
    return code
