"""uvicorn's connection, which is closed where its client asks nothing."""

from __future__ import annotations

import asyncio

from uvicorn.protocols.http.h11_impl import H11Protocol

SILENCE = 30.0  # seconds; a connection that is silent at two looks in turn is closed


class Connection(H11Protocol):
    """uvicorn itself limits only the time between two requests."""

    _look: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """A client has come."""
        super().connection_made(transport)
        self._watch(silent=False)

    def connection_lost(self, exc: Exception | None) -> None:
        """It has gone."""
        if self._look is not None:
            self._look.cancel()
        super().connection_lost(exc)

    def _watch(self, silent: bool) -> None:
        self._look = self.loop.call_later(SILENCE, self._check, silent)

    def _check(self, was_silent: bool) -> None:
        silent = self.cycle is None or self.cycle.response_complete
        if silent and was_silent:
            self.transport.close()
        else:
            self._watch(silent)
