"""Sources of text to documents: files (data/rows), folders of them, Hugging Face datasets, the
embedded demo.

Of a folder hidden files and folders (.ipynb_checkpoints, ._notes.txt) are passed over: they are
copies and remains, and a copy of a held-out text would be trained on. So are files that speak about
the data (README.md, LICENSE).
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

from edgeqat.data.conversation import ConversationError
from edgeqat.data.rows import READ, Document, is_read, suffix_of, text_of, texts
from edgeqat.errors import DataError

DEMO = "demo"
_HELD_OUT_WORDS = {"valid", "validation", "val", "test", "dev", "heldout"}
_ABOUT = {"readme", "license", "licence"}
_COUNTED = 5  # suffixes of a message


def documents(source: str, text_field: str = "text") -> Iterator[Document]:
    """Documents of a source: a text file is one, a row of another file is one, a dataset row is
    one; those without text are passed over. Rows of chat data are conversations.

    A folder stands for its files but the held-out ones, `FOLDER#valid` for those. Raises DataError
    in one line.
    """
    return (
        one
        for one in _documents(source, text_field)
        if not (isinstance(one, str) and _is_blank(one))
    )


def plain_documents(source: str, text_field: str = "text") -> Iterator[str]:
    """The same where there is no chat template yet; refuses conversations."""
    for document in documents(source, text_field):
        if not isinstance(document, str):
            raise DataError(f"data: '{source}' holds conversations; give plain text")
        yield document


def _is_blank(text: str) -> bool:
    return not text or text.isspace()


def text_files(folder: Path) -> tuple[list[Path], list[Path]]:
    """Training and held-out files of a folder; the name of held-out ones, or of a folder they are
    in, says so in a word of its own.
    """

    def words(file: Path) -> set[str]:
        return set(re.split("[^a-z]+", str(file.relative_to(folder)).lower()))

    files = [file for file in _visible(folder) if is_read(file.name)]
    held = [file for file in files if words(file) & _HELD_OUT_WORDS]
    training = [file for file in files if file not in held]
    if not training:
        raise DataError(f"data: '{folder}' holds nothing to train on; put {READ} files into it")
    return training, held


def left_out(folder: Path) -> str | None:
    """Which files of a folder are not read for their suffix, in words; None where all are."""
    others = [suffix_of(f.name) or "no suffix" for f in _visible(folder) if not is_read(f.name)]
    if not others:
        return None
    kinds = [f"{count} {suffix}" for suffix, count in Counter(others).most_common()]
    named = ", ".join(kinds[:_COUNTED] + ["..."] * (len(kinds) > _COUNTED))
    return f"left out of '{folder}': {len(others)} file(s) ({named}); read are {READ}"


def _documents(source: str, text_field: str) -> Iterator[Document]:
    name, _, split = source.rpartition("#") if not Path(source).exists() else (source, "", "")
    name, split = (name, split) if name else (source, "")
    path = Path(name)
    if name == DEMO:
        from edgeqat.demo.text import topics

        yield from topics(split or "train")
    elif path.is_dir():
        training, held = text_files(path)
        for file in held if split == "valid" else training:
            yield from texts(file, text_field)
    elif path.exists():
        yield from texts(path, text_field)
    else:
        yield from _dataset_documents(source, text_field)


def _visible(folder: Path) -> list[Path]:
    """The files of a folder, sorted, without hidden ones and those about the data."""

    def hidden(path: Path) -> bool:
        parts = path.relative_to(folder).parts
        return path.stem.lower() in _ABOUT or any(part.startswith(".") for part in parts)

    return sorted(path for path in folder.rglob("*") if path.is_file() and not hidden(path))


def _dataset_documents(source: str, text_field: str) -> Iterator[Document]:
    """Rows of a Hugging Face dataset `name`, `name#split` or `name:config#split`."""
    import datasets

    name, _, split = source.partition("#")
    name, _, config = name.partition(":")
    try:
        rows = datasets.load_dataset(name, config or None, split=split or "train", streaming=True)
        for row in rows:
            yield text_of(row, text_field)
    except ConversationError as error:
        raise DataError(f"data: a row of dataset '{source}' has {error}") from None
    except (KeyError, TypeError):
        raise DataError(
            f"data.text_field: a row of dataset '{source}' has no text in '{text_field}'; set it "
            "to the field that holds the text"
        ) from None
    except Exception as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise DataError(
            f"data: '{source}' is neither a file, a folder nor a dataset that can be reached "
            f"({reason[:120]}); give a local path"
        ) from None
