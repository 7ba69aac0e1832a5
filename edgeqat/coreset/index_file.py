"""Coreset files: the indices of selected samples and what they were selected from, as JSON."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from edgeqat.errors import UsageError
from edgeqat.output import json_text, write_text


def write(output: Path, index: Tensor, facts: dict[str, Any]) -> None:
    """Write a coreset file, whole or not at all; `facts` has at least `samples` and `data`, the
    number of samples selected from and their fingerprint.
    """
    write_text(output, json_text({**facts, "index": index.tolist()}, indent=None))


def read(name: str, samples: int, fingerprint: str) -> Tensor:
    """The indices (M,) of a coreset file, checked against the data it is used with."""
    path = Path(name).expanduser()
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
        index = torch.tensor(values["index"], dtype=torch.int64)
        data, count = str(values["data"]), int(values["samples"])
    except OSError as error:
        raise UsageError(
            f"coreset: '{name}' is neither a share in (0, 1] nor a file that can be read "
            f"({error.strerror}); write for example --coreset 0.01"
        ) from None
    except (ValueError, KeyError, TypeError):
        raise UsageError(
            f"coreset.file: '{name}' was not written by `edgeqat coreset`; write it anew"
        ) from None
    if count != samples or data != fingerprint:
        raise UsageError(
            f"coreset.file: '{name}' was selected from other data ({count} samples, now "
            f"{samples}, or changed ones); run `edgeqat coreset` again"
        )
    inside = index.ndim == 1 and len(index) and index.min() >= 0 and index.max() < count
    if not inside or len(index.unique()) < len(index):
        raise UsageError(
            f"coreset.file: '{name}' holds no distinct numbers of 0..{count - 1}; write it anew"
        )
    return index
