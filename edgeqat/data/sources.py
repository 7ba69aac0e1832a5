"""Where training and held-out text are, from the names of a recipe and the files there are; without
torch.
"""

from __future__ import annotations

import os
from pathlib import Path

from edgeqat.data.documents import DEMO, text_files
from edgeqat.data.rows import is_read
from edgeqat.errors import DataError
from edgeqat.recipe.data import DataSection

ROOT_VARIABLE = "EDGEQAT_DATA"  # where data are, unless a root is named
SELF = "self"  # the name of text that the model writes itself


def sources(data: DataSection) -> tuple[str, str | None]:
    """Training and held-out text: names below the root, or the root itself; None: the last part
    of the training text is held out. Raises DataError in one line.
    """
    root = Path(data.root).expanduser() if data.root else None
    if data.train == SELF and root is None:
        return SELF, data.valid  # until pipeline/self_text has written it
    if data.train == DEMO and data.root is None:
        return f"{DEMO}#train", data.valid or f"{DEMO}#valid"
    if root is not None and not root.exists():
        raise DataError(f"data.root: '{data.root}' does not exist; give --data a file or a folder")
    if root is not None and root.is_file():
        return str(root), _held_out_beside(root, data)
    if data.train and data.train != DEMO:
        train = _below(root, data.train)
        if data.valid is None and Path(train).is_dir():
            return train, _held_out_in(train)
        return train, _below(root, data.valid) if data.valid else None
    if root is None:
        raise DataError(
            "data.train: no text is named; give --data FILE_OR_FOLDER, or set EDGEQAT_DATA"
        )
    if data.valid:
        raise DataError(
            f"data.valid: '{data.valid}' needs a data.train, since '{root}' is a folder; name that "
            "too, or put the word valid into the names of held-out files"
        )
    return str(root), _held_out_in(str(root))


def mixed(data: DataSection) -> list[tuple[str, float]]:
    """The further training texts of a mix, and the share of each."""
    root = Path(data.root).expanduser() if data.root else None
    folder = root if root is not None and root.is_dir() else None
    return [(_one(folder, name), share) for name, share in data.mix.items()]


def _one(folder: Path | None, name: str) -> str:
    """A text of a mix: below the root where it is there, else where it says."""
    if name in (DEMO, SELF):
        return f"{DEMO}#train" if name == DEMO else name
    return _below(folder if folder is not None and is_below(folder, name) else None, name)


def training_source(data: DataSection) -> str:
    """Where the training text is: what documents() reads."""
    return sources(data)[0]


def source_name(data: DataSection) -> str:
    """The training text as results name it, with the others of a mix."""
    parts = [training_source(data), *(name for name, _ in mixed(data))]
    return " + ".join(name.removesuffix("#train") for name in parts)


def _held_out_in(folder: str) -> str | None:
    """The held-out files of a folder, if there are any."""
    return f"{folder}#valid" if text_files(Path(folder))[1] else None


def _held_out_beside(file: Path, data: DataSection) -> str | None:
    """The held-out text of a root that is one file: that file stands for both texts a recipe names,
    unless the held-out one is there itself.
    """
    if data.valid is None or Path(data.valid).exists():
        return data.valid
    if data.train is not None:
        return None
    return _below(file.parent, data.valid)


def _below(root: Path | None, name: str) -> str:
    if root is not None and is_below(root, name):
        return str(root / name)
    if root is not None:
        reason = "is elsewhere" if (root / name).exists() else "does not exist"
        raise DataError(
            f"data: '{root / name}' {reason}; set data.root (--data) to the folder it is in, or "
            "data.train and data.valid to texts below that"
        )
    if root is None and is_read(name) and not Path(name).exists():
        raise DataError(f"data: '{name}' does not exist; give --data FOLDER, or set EDGEQAT_DATA")
    return name


def is_below(root: Path, name: str) -> bool:
    """Whether a text that a recipe names is in the folder `root`."""
    path = Path(os.path.abspath(root / name))  # links may lead elsewhere
    return path.exists() and path.is_relative_to(os.path.abspath(root))
