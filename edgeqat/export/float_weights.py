"""A float language model as exports read it: its configuration and its tensors."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, ClassVar

import numpy as np
from torch import Tensor, nn

from edgeqat.hf.stored import stored_tensors


@dataclass(frozen=True)
class FloatWeights:
    """config: what config.json holds; tensors: float32 by name, tied ones once; `layers` stays
    empty, since nothing is packed.
    """

    config: dict[str, Any]
    tensors: dict[str, Tensor]
    layers: dict[str, Any] = field(default_factory=dict)
    has_turned_head: ClassVar[bool] = False  # of packed folders alone

    @classmethod
    def of_model(cls, model: nn.Module) -> FloatWeights:
        """The weights of a loaded model of transformers, which share its memory."""
        config: Any = model.config
        return cls(config.to_dict(), stored_tensors(model))

    def array(self, name: str) -> np.ndarray | None:
        """A tensor; None where there is none of the name."""
        tensor = self.tensors.get(name)
        return None if tensor is None else tensor.numpy()
