"""How the next token is drawn."""

from __future__ import annotations

from typing import Any, NamedTuple


class Sampling(NamedTuple):
    """temperature 0 is greedy; top_k 0 and top_p 1 keep all tokens."""

    temperature: float = 0.0
    top_k: int = 0
    top_p: float = 1.0
    seed: int = 0

    def options(self) -> dict[str, Any]:
        """Arguments of transformers' generate(), which draws from torch's generator."""
        if self.temperature == 0:
            return {"do_sample": False}
        drawn = {"temperature": self.temperature, "top_k": self.top_k, "top_p": self.top_p}
        return {"do_sample": True, **drawn}


GREEDY = Sampling()
