"""The embedded demo model: a LLaMA of 1.3M parameters (GQA, tied, head_dim 64), fp16 weights inside
the package.

Made by `edgeqat train --recipe demo-float`; a test asserts that its size and shape are as the
recipe says.
"""

from __future__ import annotations

from pathlib import Path

from edgeqat.errors import ModelError


def folder() -> Path:
    """The demo's Hugging Face folder."""
    place = Path(__file__).parent / "weights"
    if not (place / "config.json").is_file():
        raise ModelError("model: 'demo' is missing from this installation; reinstall edgeqat")
    return place
