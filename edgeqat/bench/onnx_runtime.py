"""ONNX files under onnxruntime, on the CPU."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path

import numpy as np
from torch import Tensor

from edgeqat.errors import UsageError


def check_installed() -> None:
    """Refuse to start without the optional package."""
    if find_spec("onnxruntime") is None:
        raise UsageError("onnxruntime: it is not installed; pip install 'edgeqat[export]'")


class OnnxClassifier:
    """An open classifier: normalised images (B, 3, S, S) to logits (B, C)."""

    def __init__(self, path: Path, threads: int) -> None:
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads
        options.log_severity_level = 3
        self._session = onnxruntime.InferenceSession(
            path, options, providers=["CPUExecutionProvider"]
        )
        self._input = self._session.get_inputs()[0].name

    def __call__(self, images: Tensor) -> np.ndarray:
        return self._session.run(None, {self._input: images.numpy()})[0]
