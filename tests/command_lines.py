"""Command lines of pages and help texts: their words, and whether the program reads them."""

from __future__ import annotations

import shlex

import typer

from edgeqat import cli


def arguments(line: str) -> list[str]:
    words = shlex.split(line)
    while not words[0].endswith("edgeqat"):  # VARIABLE=value before it
        words.pop(0)
    return words[1:]


def with_data(given: list, place: object) -> list:
    """Arguments with another --data in the place of theirs: a second one makes a mix."""
    at = given.index("--data")
    return [*given[:at], "--data", place, *given[at + 2 :]]


def parse(given: list[str]) -> None:
    """Read a command line to the end without running it; raises typer's error for an unknown verb,
    option or argument.
    """
    command = typer.main.get_command(cli.app)
    given = cli._with_scheme([word for word in given if word != "--debug"])
    if given in (["--help"], ["--version"]):
        return
    context = command.make_context("edgeqat", list(given))
    name, verb, rest = command.resolve_command(context, list(given))
    verb.make_context(name, rest, parent=context)
