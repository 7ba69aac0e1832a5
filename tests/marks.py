"""Marks that several files share."""

from __future__ import annotations

import pytest

from edgeqat.runtime import native

needs_kernels = pytest.mark.skipif(native.library() is None, reason="the kernels are not built")
