"""Mixed widths: which layer gets how many bits, so that the loss is least within a size.

    minimise  sum_l loss_l(b_l)   with   sum_l bytes_l(b_l) <= budget

Each layer's choices are those on the lower convex hull of loss over bytes; from the smallest ones
on, the step that saves most loss a byte is taken until the budget is used up. The choice is at most
one step of one layer away from the best there is (Shoham & Gersho 1988).
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise

from edgeqat.errors import RecipeError


@dataclass(frozen=True)
class Choice:
    """One width of a layer: its bits, bytes and expected loss."""

    bits: int
    bytes: int
    loss: float


def allocate(
    layers: dict[str, list[Choice]], average_bits: float, weights: int
) -> dict[str, Choice]:
    """The choice of each layer, by name, within so many bits a weight on average.

    Raises RecipeError where the narrowest widths are larger than the budget.
    """
    hulls = {name: _hull(choices) for name, choices in layers.items()}
    taken = {name: hull[0] for name, hull in hulls.items()}
    used, budget = sum(choice.bytes for choice in taken.values()), int(average_bits * weights / 8)
    if used > budget:
        raise RecipeError(
            f"quant.average_bits: {average_bits:g} is less than the {8 * used / weights:.2f} that "
            "the narrowest widths take; raise it"
        )
    steps = [
        ((before.loss - after.loss) / (after.bytes - before.bytes), name, after)
        for name, hull in hulls.items()
        for before, after in pairwise(hull)
    ]
    full: set[str] = set()
    for _, name, choice in sorted(steps, key=lambda step: -step[0]):
        more = choice.bytes - taken[name].bytes
        if name in full or used + more > budget:
            full.add(name)  # a later step of this layer would skip one
            continue
        taken[name], used = choice, used + more
    return taken


def _hull(choices: list[Choice]) -> list[Choice]:
    """The choices on the lower convex hull, by rising bytes and falling loss."""
    hull: list[Choice] = []
    for choice in sorted(choices, key=lambda one: (one.bytes, one.loss)):
        if hull and choice.loss >= hull[-1].loss:
            continue
        while len(hull) > 1 and _slope(hull[-2], choice) <= _slope(hull[-2], hull[-1]):
            hull.pop()
        hull.append(choice)
    return hull


def _slope(one: Choice, other: Choice) -> float:
    return (other.loss - one.loss) / (other.bytes - one.bytes)
