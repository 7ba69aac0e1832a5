"""How a server is started."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Settings:
    """name: of the model, as clients call it. timeout: seconds of a request. max_body: bytes of
    one. local: it is bound to this machine alone.
    """

    name: str
    parallel: int = 4
    queue: int = 64
    timeout: float = 600.0
    max_body: int = 4_000_000
    api_key: str | None = None
    access_log: bool = False
    local: bool = True
