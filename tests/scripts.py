"""The scripts of eval/ as modules."""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType

import pytest

FOLDER = Path(__file__).parents[1] / "eval"
needs_scripts = pytest.mark.skipif(not FOLDER.is_dir(), reason="eval/ is not in source archives")


@contextmanager
def loaded(name: str) -> Iterator[ModuleType]:
    """The module of eval/NAME.py, known to `sys.modules` inside the context."""
    spec = importlib.util.spec_from_file_location(name, FOLDER / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    try:
        spec.loader.exec_module(module)
        yield module
    finally:
        del sys.modules[name]
