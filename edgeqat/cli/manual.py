"""`edgeqat manual`: the pages of docs/cli, one a verb and one of the recipes' fields, from the code
itself.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Annotated, Any

import typer

_MADE = "<!-- made by `edgeqat manual docs/cli`; a test holds it to the code -->"
_SENTENCE_END = re.compile(r"(?<=[.!?]) (?=[A-Z])")

EXAMPLES = (
    "edgeqat manual docs/cli",
    "edgeqat manual PAGES",
)


def command(
    context: typer.Context,
    folder: Annotated[Path, typer.Argument(help="Folder to write the pages into.")],
) -> None:
    """Write a page for each verb and one of the recipes' fields."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, text in pages(context.find_root().command).items():
        (folder / f"{name}.md").write_text(text, encoding="utf-8")
        print(f"wrote {folder / name}.md")


def pages(program: Any) -> dict[str, str]:
    """Markdown of every verb that the program lists, and of the recipes' fields, by name."""
    verbs = program.commands.items()
    written = {name: _page(name, verb) for name, verb in verbs if not verb.hidden}
    return {**written, "fields": _fields_page()}


def _fields_page() -> str:
    from edgeqat.cli.fields import fields

    lines = [
        _MADE, "# Fields of a recipe", "", "In YAML by section, on the command line as "
        "`--set train.steps=100`. Where no default is named the field may be absent.",
        "A file may also name another recipe to start from: `base: NAME` or `base: FILE`.", "",
        "| field | takes | default | |", "|---|---|---|---|",
    ]  # fmt: skip
    for entry in fields():
        default = f"`{entry.default}`" if entry.default else ""
        lines.append(
            f"| `{entry.name}` | {_cell(entry.takes)} | {default} | {_cell(entry.meaning)} |"
        )
    return "\n".join([*lines, ""])


def _page(name: str, verb: Any) -> str:
    parameters = [entry for entry in verb.params if entry.name != "help" and not entry.hidden]
    arguments = [entry for entry in parameters if entry.param_type_name == "argument"]
    options = [entry for entry in parameters if entry.param_type_name == "option"]
    usage = " ".join(
        ["edgeqat", name, *map(_shown, arguments), *(["[OPTIONS]"] if options else [])]
    )
    lines = [_MADE, f"# edgeqat {name}", "", _paragraphs(verb.help), "", f"    {usage}", ""]
    if arguments:
        lines += ["| argument | |", "|---|---|"]
        lines += [f"| `{entry.name.upper()}` | {_cell(entry.help)} |" for entry in arguments] + [""]
    if options:
        lines += ["| option | |", "|---|---|"]
        lines += [
            f"| {_names(entry)} | {_cell(entry.help)}{_default(entry)} |" for entry in options
        ] + [""]
    return "\n".join([*lines, "Examples:", "```", *examples(verb), "```", ""])


def examples(verb: Any) -> list[str]:
    """The command lines at the end of a help text."""
    return [line.strip() for line in (verb.epilog or "").splitlines() if "edgeqat " in line]


def _shown(argument: Any) -> str:
    name = argument.name.upper()
    return name if argument.required else f"[{name}]"


def _names(option: Any) -> str:
    return ", ".join(f"`{name}`" for name in [*option.opts, *option.secondary_opts])


def _default(option: Any) -> str:
    if option.required:
        return " Required."
    plain = isinstance(option.default, int | float | str) and not isinstance(option.default, bool)
    return f" [{option.default}]" if plain else ""


def _cell(text: str | None) -> str:
    return " ".join((text or "").split()).replace("|", "\\|")


def _paragraphs(text: str) -> str:
    """A help text with each sentence on a line of its own."""
    parts = (" ".join(part.split()) for part in text.split("\n\n"))
    return "\n\n".join(_SENTENCE_END.sub("\n", part) for part in parts)
