"""Local data of tasks: what the files of eval/lm_eval name in `custom_dataset`.

    dataset_kwargs: {file: blimp/adjunct_island}     below the data root, any of SUFFIXES
    dataset_kwargs: {files: {test: [gsm8k/test]}}    several splits, each by the first of its names

The data root comes with the task's metadata (`--data-root`, or `--metadata data_root=FOLDER` of
lm-eval's own command line), else from EDGEQAT_DATA. lm-eval calls these functions with its metadata
and dataset_kwargs in one, so that what they do not know is passed over.
"""

from __future__ import annotations

import gzip
import json
import os
import re
import zlib
from pathlib import Path
from typing import Any

from pyarrow.parquet import read_table

from edgeqat.data.documents import plain_documents
from edgeqat.data.sources import ROOT_VARIABLE
from edgeqat.errors import DataError

_SUFFIXES = (".jsonl.gz", ".jsonl", ".parquet")
_TEXTS = (".txt.gz", ".txt")


def rows(file: str, data_root: str | None = None, **_: Any) -> dict[str, Any]:
    """The rows of one file as the split `test`."""
    return {"test": _dataset(locate(file, data_root, _SUFFIXES))}


def splits(
    files: dict[str, list[str]], fields: list[str], data_root: str | None = None, **_: Any
) -> dict[str, Any]:
    """The rows of several splits, with the fields that the task needs; of the names that a split's
    file may have the first is taken.
    """
    datasets = {}
    for split, names in files.items():
        path = locate(names, data_root, _SUFFIXES)
        datasets[split] = _dataset(path)
        missing = [field for field in fields if field not in datasets[split].column_names]
        if missing:
            raise DataError(
                f"tasks: '{path}' has no field '{missing[0]}'; its rows need {', '.join(fields)}"
            )
    return datasets


def pages(file: str, data_root: str | None = None, size: int = 8000, **_: Any) -> dict[str, Any]:
    """A text in pages of about `size` characters that end with a paragraph, field `page`."""
    import datasets

    pages, page = [], ""
    for paragraph in _paragraphs(file, data_root):
        page += f"{paragraph}\n\n"
        if len(page) >= size:
            pages.append(page)
            page = ""
    pages += [page] if page else []
    return {"test": datasets.Dataset.from_dict({"page": pages})}


def passages(
    file: str, data_root: str | None = None, least: int = 50, most: int = 100, **_: Any
) -> dict[str, Any]:
    """Paragraphs of `least` to `most` words whose last one ends a sentence, field `text` without
    the final stop: what a last-word task asks for.
    """
    import datasets

    texts = []
    for paragraph in _paragraphs(file, data_root):
        words = paragraph.split()
        if least <= len(words) <= most and words[-1].endswith(".") and words[-1][:-1].isalpha():
            texts.append(" ".join(words)[:-1])
    return {"test": datasets.Dataset.from_dict({"text": texts})}


def endings(file: str, data_root: str | None = None, **_: Any) -> dict[str, Any]:
    """HellaSwag's rows with fields `query`, `choices` and `gold`; WikiHow's marks in square
    brackets go.
    """
    dataset = rows(file, data_root)["test"]

    def prepared(row: dict[str, Any]) -> dict[str, Any]:
        begun = f"{row['ctx_a']} {row['ctx_b'].capitalize()}"
        return {
            "query": _unmarked(f"{row['activity_label']}: {begun}"),
            "choices": [_unmarked(ending) for ending in row["endings"]],
            "gold": int(row["label"]),
        }

    return {"test": dataset.map(prepared, keep_in_memory=True)}


def locate(names: str | list[str], data_root: str | None, suffixes: tuple[str, ...]) -> Path:
    """The first of the names below the data root, with the first suffix that is there."""
    names = [names] if isinstance(names, str) else names
    root = data_root or os.environ.get(ROOT_VARIABLE)
    if not root:
        raise DataError(
            f"tasks: no data root for '{names[0]}'; give --data-root FOLDER, or set {ROOT_VARIABLE}"
        )
    for name in names:
        for suffix in suffixes:
            path = Path(root).expanduser() / f"{name}{suffix}"
            if path.is_file():
                return path
    others = f" (or {', '.join(names[1:])})" if names[1:] else ""
    raise DataError(
        f"tasks: '{Path(root) / names[0]}' with {', '.join(suffixes)} is not there{others}; put "
        "the data below --data-root as eval/lm_eval/README.md says"
    )


def _dataset(path: Path) -> Any:
    import datasets

    try:
        if path.suffix == ".parquet":
            return datasets.Dataset(read_table(path))
        raw = path.read_bytes()
        text = (gzip.decompress(raw) if path.suffix == ".gz" else raw).decode("utf-8")
        records = [json.loads(line) for line in text.split("\n") if line.strip()]
        return datasets.Dataset.from_list(records)
    except (OSError, EOFError, ValueError, TypeError, AttributeError, zlib.error) as error:
        raise DataError(
            f"tasks: '{path}' cannot be read ({' '.join(str(error).split())[:120]}); check the file"
        ) from None


def _unmarked(text: str) -> str:
    whole = re.sub(r"\[.*?\]", "", text.strip().replace(" [title]", ". "))
    return whole.replace("  ", " ")


def _paragraphs(file: str, data_root: str | None) -> list[str]:
    path = locate(file, data_root, _TEXTS)
    paragraphs = []
    for document in plain_documents(str(path)):
        parts = (" ".join(part.split()) for part in document.split("\n\n"))
        paragraphs += [part for part in parts if part]
    return paragraphs
