"""The demo's text: help topics that every full CPython carries (pydoc_data.topics), taken by name.

No text is shipped: it is read from the running Python. Topics differ a little between versions, so
perplexities of the demo are compared within one Python only. Held-out topics share next
to no text with the training ones (under 2% of their eight-word runs).
"""

from __future__ import annotations

from collections.abc import Iterator

from edgeqat.errors import DataError

HELD_OUT = ("import", "typesmapping", "calls", "raise", "binary")
TRAIN = (
    "specialnames", "compound", "types", "formatstrings", "string-methods", "typesseq", "debugger",
    "comparisons", "assignment", "execmodel", "strings", "operator-summary", "objects",
    "identifiers",
    "subscriptions", "dict", "slicings", "typesmethods", "global", "booleans", "specialattrs",
    "integers", "power", "atom-identifiers", "exprlists", "assert", "typesmodules", "return", "del",
    "nonlocal", "floating", "truth", "attribute-references", "unary", "bitwise", "yield",
    "atom-literals", "bltin-code-objects", "conversions", "imaginary", "shifting", "lists", "break",
    "lambda", "continue", "typesfunctions", "numbers", "pass", "bltin-type-objects",
    "bltin-ellipsis-object", "bltin-null-object", "await",
)  # fmt: skip


def topics(split: str) -> Iterator[str]:
    """The texts of the `train` or the `valid` topics. Raises DataError where Python has none."""
    names = {"train": TRAIN, "valid": HELD_OUT}.get(split)
    if names is None:
        raise DataError(f"data: 'demo#{split}' does not exist; use demo#train or demo#valid")
    try:
        from pydoc_data import topics as module
    except ImportError:
        raise DataError(
            "data: this Python has no pydoc_data.topics (a minimal install), so the demo has no "
            "text; "
            "install the full standard library or give --data"
        ) from None
    texts = [module.topics[name] for name in names if name in module.topics]
    if not texts:
        raise DataError("data: pydoc_data.topics holds none of the demo's topics; give --data")
    yield from texts
