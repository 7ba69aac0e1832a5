"""What IFEval's checks of answers need besides lm-eval: three packages, and nltk's data.

lm-eval would fetch the data from the network when it is imported. It is looked for where nltk
looks, and in `nltk_data` of the data root.
"""

from __future__ import annotations

import os
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from edgeqat.data.sources import ROOT_VARIABLE
from edgeqat.errors import DataError, UsageError

NAME = "ifeval"
PACKAGES = ("langdetect", "immutabledict", "nltk")
_TOKENIZERS = "tokenizers/punkt_tab"


def check(data_root: str | None) -> None:
    """Refuse the task where a package or nltk's data are missing; without a data root they come
    from the network, as the questions do.
    """
    missing = [name for name in PACKAGES if find_spec(name) is None]
    if missing:
        raise UsageError(
            f"tasks: '{NAME}' needs {', '.join(missing)}, not installed; "
            "pip install 'edgeqat[ifeval]'"
        )
    root = data_root or os.environ.get(ROOT_VARIABLE)
    if not root:
        return
    data: Any = import_module("nltk").data
    place = str(Path(root).expanduser() / "nltk_data")
    if place not in data.path:
        data.path.append(place)
    try:
        data.find(_TOKENIZERS)
    except LookupError:
        raise DataError(
            f"tasks: '{NAME}' needs nltk's punkt_tab, which is not here; run `python -m "
            f"nltk.downloader -d {place} punkt_tab`, or unpack it to {place}/{_TOKENIZERS}"
        ) from None
