"""The client of one answer: events come from the engine's thread, and a connection that closes ends
the answer.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress

from starlette.types import Receive

from edgeqat.serve.answer import Answer, End, Event
from edgeqat.serve.refusal import Refused
from edgeqat.serve.scheduler import Scheduler


class Gone(Exception):
    """The client has closed the connection."""


class Listener:
    """Events of an answer, in the event loop that made it."""

    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._events: asyncio.Queue[Event | None] = asyncio.Queue()

    def emit(self, event: Event) -> None:
        """Hand over an event, from any thread."""
        with suppress(RuntimeError):  # the loop is closed: nobody listens any more
            self._loop.call_soon_threadsafe(self._events.put_nowait, event)

    async def events(self) -> AsyncIterator[Event]:
        """Events up to the last one; Gone where the client goes first."""
        while True:
            event = await self._events.get()
            if event is None:
                raise Gone
            yield event
            if isinstance(event, End | Refused):
                return

    @asynccontextmanager
    async def following(
        self, receive: Receive, scheduler: Scheduler, answer: Answer
    ) -> AsyncIterator[AsyncIterator[Event]]:
        """The events, while the connection is watched; behind it the answer is cancelled."""
        watcher = asyncio.create_task(self._watch(receive))
        try:
            yield self.events()
        finally:
            watcher.cancel()
            scheduler.cancel(answer)

    async def _watch(self, receive: Receive) -> None:
        while (await receive())["type"] != "http.disconnect":
            pass
        self._events.put_nowait(None)
