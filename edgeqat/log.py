"""Logging: one rich console on stderr for log lines and progress bars, set up by the command line
only.
"""

from __future__ import annotations

import logging
import os
import warnings
from typing import Any

_consoles: list[Any] = []


def console() -> Any:
    """The stderr console that log lines and progress bars share."""
    if not _consoles:
        from rich.console import Console

        _consoles.append(Console(stderr=True, highlight=False))
    return _consoles[0]


def is_main_process() -> bool:
    """Whether this process is the one that prints, of those that torchrun started."""
    return os.environ.get("RANK", "0") == "0"


def setup(debug: bool = False) -> None:
    """Send our log lines to the console and keep the libraries' chatter off it."""
    from rich.logging import RichHandler

    logger = logging.getLogger("edgeqat")
    handler: logging.Handler = logging.StreamHandler()  # a line stays one, however long
    if console().is_terminal:
        handler = RichHandler(
            console=console(), highlighter=None, show_time=False, show_path=False, show_level=False
        )
    logger.handlers = [handler]
    logger.setLevel(logging.DEBUG if debug else logging.INFO)
    if not is_main_process():
        logger.setLevel(logging.ERROR)
    logger.propagate = False
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
    os.environ.setdefault("HF_HUB_VERBOSITY", "error")  # it tells of every retry
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    os.environ.setdefault("HF_DATASETS_DISABLE_PROGRESS_BARS", "1")
    warnings.filterwarnings("ignore", module=r"(torch|transformers|accelerate)\b.*")
