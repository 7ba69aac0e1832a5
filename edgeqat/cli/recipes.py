"""`edgeqat recipes`: the shipped recipes, or one of them in full."""

from __future__ import annotations

from typing import Annotated

import typer

from edgeqat.errors import UsageError

EXAMPLES = (
    "edgeqat recipes llama-8m-novels",
    "edgeqat recipes --fields",
)


def command(
    name: Annotated[str | None, typer.Argument(help="Recipe to print with all defaults.")] = None,
    described: Annotated[
        bool, typer.Option("--fields", help="Say what every field of a recipe means.")
    ] = False,
) -> None:
    """List the shipped recipes, or print one resolved."""
    from edgeqat.cli.fields import fields
    from edgeqat.recipe import files as recipes

    if described:
        if name is not None:
            raise UsageError(f"fields: they are those of every recipe; leave out '{name}'")
        for field in fields():
            takes = f"{field.takes} [{field.default}]" if field.default else field.takes
            print(f"{field.name}: {takes}\n    {field.meaning}")
        return
    if name is not None:
        print(recipes.dump(recipes.load(name)), end="")
        return
    shipped = {key: recipes.load(key) for key in recipes.shipped()}
    width = max(map(len, shipped), default=0)
    for key, recipe in shipped.items():
        kind = "train" if recipe.makes_float else "quantize"
        print(f"{key:<{width}}  {kind:<8}  {recipe.description}")
