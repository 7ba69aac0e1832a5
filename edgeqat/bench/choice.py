"""Names that a user chose among peers and ways that may or may not be installed."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping

from edgeqat.errors import UsageError, nearest


def choose(
    noun: str,
    wanted: Iterable[str],
    families: Mapping[str, str],
    missing: Callable[[str], str | None],
) -> list[str]:
    """Names from names and families, each once; `families` has the family of every name, and
    missing(name) what is to be done before it can be used. Raises UsageError, with `noun` as the
    field.
    """
    chosen: list[str] = []
    for word in wanted:
        names = [word] if word in families else [n for n, of in families.items() if of == word]
        if not names:
            known = [*dict.fromkeys(families.values()), *families]
            raise UsageError(f"{noun}: '{word}' is unknown; {nearest(word, known)}")
        for name in names:
            way = missing(name)
            if way is not None:
                raise UsageError(f"{noun}: '{name}' is not installed; {way}")
        chosen += [name for name in names if name not in chosen]
    return chosen
