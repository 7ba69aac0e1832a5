"""Marks that several files share."""

from __future__ import annotations

import os
import shutil

import pytest

from edgeqat import native

BROWSER = shutil.which("chromium") or shutil.which("chromium-browser")
needs_kernels = pytest.mark.skipif(native.library() is None, reason="the kernels are not built")
# continuous integration sets the variable: there the browser must be found
needs_browser = pytest.mark.skipif(
    BROWSER is None and not os.environ.get("EDGEQAT_BROWSER"), reason="chromium is not installed"
)
