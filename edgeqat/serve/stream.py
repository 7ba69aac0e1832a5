"""An answer as server-sent events: `data: {...}` lines, at last `data: [DONE]`."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from typing import Any

from starlette.types import Receive, Scope, Send

from edgeqat.serve.answer import Answer, Event, Piece
from edgeqat.serve.listener import Gone, Listener
from edgeqat.serve.refusal import Refused
from edgeqat.serve.reply import Reply
from edgeqat.serve.scheduler import Scheduler

_HEADERS = [
    (b"content-type", b"text/event-stream; charset=utf-8"),
    (b"cache-control", b"no-cache"),
    (b"x-accel-buffering", b"no"),  # nginx would collect them
]


class Stream:
    """A response that sends an answer while it is written."""

    def __init__(
        self, reply: Reply, listener: Listener, answer: Answer, scheduler: Scheduler
    ) -> None:
        self._reply, self._listener = reply, listener
        self._answer, self._scheduler = answer, scheduler

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """The ASGI application that the response is."""
        following = self._listener.following(receive, self._scheduler, self._answer)
        async with following as events:
            await send({"type": "http.response.start", "status": 200, "headers": _HEADERS})
            try:
                async for data in self._lines(events):
                    await send({"type": "http.response.body", "body": data, "more_body": True})
            except Gone:
                return
            await send({"type": "http.response.body", "body": b"", "more_body": False})

    async def _lines(self, events: AsyncIterator[Event]) -> AsyncIterator[bytes]:
        for chunk in self._reply.first():
            yield _line(chunk)
        async for event in events:
            if isinstance(event, Piece):
                yield _line(self._reply.piece(event))
            elif isinstance(event, Refused):
                yield _line(event.body())
                return
            else:
                for chunk in self._reply.last(event):
                    yield _line(chunk)
                yield b"data: [DONE]\n\n"


def _line(chunk: dict[str, Any]) -> bytes:
    text = json.dumps(chunk, ensure_ascii=False, separators=(",", ":"))
    return f"data: {text}\n\n".encode()
