"""What a run is scored in: the perplexity of language models, the top-1 accuracy of classifiers."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Metric:
    """A score: its name is a key of every score and the heading of every table."""

    name: str
    of_images: bool
    sample: str  # what training speed counts
    gap: str  # what "recovered" is a share of

    def over_float(self, value: float, floating: float | None) -> str:
        """A score against the float model's, in words."""
        if floating is None:
            return "-"
        if self.of_images:
            return f"{value - floating:+.2f} points"
        return f"{100 * (value / floating - 1):+.2f}%"


PERPLEXITY = Metric("perplexity", False, "tokens", "log-perplexity")
TOP1 = Metric("top1", True, "samples", "top-1")


def metric_of(metrics: Mapping[str, Any]) -> Metric:
    """The metric of a metrics.json."""
    return TOP1 if TOP1.name in metrics["float"] else PERPLEXITY
