"""`edgeqat recipes`: the shipped recipes, or one of them in full."""

from __future__ import annotations

from typing import Annotated

import typer

from edgeqat import recipe as recipes


def command(
    name: Annotated[str | None, typer.Argument(help="Recipe to print with all defaults.")] = None,
) -> None:
    """List the shipped recipes, or print one resolved."""
    if name is not None:
        print(recipes.dump(recipes.load(name)), end="")
        return
    found = {key: recipes.load(key) for key in recipes.shipped()}
    width = max(map(len, found), default=0)
    for key, recipe in found.items():
        kind = "train" if recipe.makes_float else "quantize"
        print(f"{key:<{width}}  {kind:<8}  {recipe.description}")
