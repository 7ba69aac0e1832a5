"""Counts and times for Prometheus; each server has a registry of its own."""

from __future__ import annotations

from collections.abc import Callable

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from prometheus_client.exposition import CONTENT_TYPE_LATEST

CONTENT_TYPE = CONTENT_TYPE_LATEST
_FIRST = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300)
_NEXT = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5)


class Metrics:
    """What `GET /metrics` tells."""

    def __init__(self) -> None:
        self._registry = registry = CollectorRegistry()
        self.requests = Counter(
            "edgeqat_requests", "HTTP requests.", ["endpoint", "status"], registry=registry
        )
        self.prompt_tokens = Counter(
            "edgeqat_prompt_tokens", "Tokens of prompts, cached ones too.", registry=registry
        )
        self.cached_tokens = Counter(
            "edgeqat_cached_tokens", "Tokens of prompts that were read before.", registry=registry
        )
        self.generated_tokens = Counter(
            "edgeqat_generated_tokens", "Tokens of answers.", registry=registry
        )
        self.steps = Counter("edgeqat_engine_steps", "Steps of the engine.", registry=registry)
        self.first_token = Histogram(
            "edgeqat_time_to_first_token_seconds",
            "From a request's arrival, waiting included.",
            buckets=_FIRST,
            registry=registry,
        )
        self.next_token = Histogram(
            "edgeqat_time_per_token_seconds",
            "From one token of an answer to the next.",
            buckets=_NEXT,
            registry=registry,
        )
        self._running = Gauge("edgeqat_requests_running", "Answers at work.", registry=registry)
        self._waiting = Gauge("edgeqat_requests_waiting", "Answers that wait.", registry=registry)

    def watch(self, running: Callable[[], float], waiting: Callable[[], float]) -> None:
        """Where the two gauges are read."""
        self._running.set_function(running)
        self._waiting.set_function(waiting)

    def text(self) -> bytes:
        """All of it in Prometheus' text format."""
        return generate_latest(self._registry)
