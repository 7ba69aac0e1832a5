"""The endpoints of OpenAI's API, and those that watch the server."""

from __future__ import annotations

import time
from dataclasses import dataclass

from anyio.to_thread import run_sync
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route
from starlette.types import ASGIApp

from edgeqat.runtime.batch import Batch
from edgeqat.serve import page, question
from edgeqat.serve.answer import Answer, Piece
from edgeqat.serve.body import body_of
from edgeqat.serve.gate import GONE, Gate, refused
from edgeqat.serve.listener import Gone, Listener
from edgeqat.serve.metrics import CONTENT_TYPE, Metrics
from edgeqat.serve.question import Question
from edgeqat.serve.refusal import Refused
from edgeqat.serve.reply import Reply
from edgeqat.serve.scheduler import Scheduler, failed
from edgeqat.serve.settings import Settings
from edgeqat.serve.stream import Stream
from edgeqat.serve.text import Reader


@dataclass(frozen=True)
class Api:
    """What the endpoints need."""

    settings: Settings
    batch: Batch
    reader: Reader
    scheduler: Scheduler
    metrics: Metrics
    created: int

    async def models(self, request: Request) -> Response:
        """The one model that there is."""
        return JSONResponse({"object": "list", "data": [self._model()]})

    async def model(self, request: Request) -> Response:
        """A model by its name."""
        name = request.path_params["name"]
        if name != self.settings.name:
            raise Refused(
                f"model: '{name[:60]}' is unknown here; use '{self.settings.name}'",
                404,
                "model",
                "model_not_found",
            )
        return JSONResponse(self._model())

    def _model(self) -> dict[str, object]:
        name, context = self.settings.name, self.batch.context
        model = {"id": name, "object": "model", "created": self.created, "owned_by": "edgeqat"}
        return {**model, "context_length": context}

    async def completions(self, request: Request) -> ASGIApp:
        """A text that goes on."""
        return await self._answered(request, chat=False)

    async def chat(self, request: Request) -> ASGIApp:
        """The answer to messages."""
        return await self._answered(request, chat=True)

    async def health(self, request: Request) -> Response:
        """Whether requests are taken."""
        alive = self.scheduler.alive
        return JSONResponse({"status": "ok" if alive else "stopping"}, 200 if alive else 503)

    async def measured(self, request: Request) -> Response:
        """Prometheus' text."""
        return Response(self.metrics.text(), headers={"Content-Type": CONTENT_TYPE})

    async def page(self, request: Request) -> Response:
        """The page to chat with."""
        return Response(page.html(), headers=page.headers())

    async def _answered(self, request: Request, chat: bool) -> ASGIApp:
        arrived = time.monotonic()
        with self.scheduler.arrival():
            try:
                body = await body_of(request, self.settings.max_body)
            except ClientDisconnect:
                return Response(status_code=GONE)
            # In a thread: of a large prompt it takes seconds, while others' answers go out.
            asked, ids = await run_sync(self._read, body, chat)
            del body
        listener = Listener()
        deadline = arrived + self.settings.timeout
        room = self.batch.context - len(ids)
        answer = Answer(asked, ids, room, arrived, deadline, listener.emit)
        self.scheduler.submit(answer)
        reply = Reply(asked, self.settings.name)
        if asked.stream:
            return Stream(reply, listener, answer, self.scheduler)
        pieces: list[Piece] = []
        async with listener.following(request.receive, self.scheduler, answer) as events:
            try:
                async for event in events:
                    if isinstance(event, Refused):
                        raise event
                    if not isinstance(event, Piece):
                        return JSONResponse(reply.whole(pieces, event))
                    pieces.append(event)
            except Gone:
                pass
        return Response(status_code=GONE)

    def _read(self, body: bytes, chat: bool) -> tuple[Question, list[int]]:
        """A question, and the token ids of its prompt."""
        asked = question.read(body, chat, self.settings.name)
        field, most = "messages" if chat else "prompt", self.batch.context
        ids = self._ids(asked)
        if not ids:
            raise Refused(f"{field}: it has no tokens; give other text", param=field)
        if len(ids) >= most:
            raise Refused(
                f"{field}: {len(ids)} tokens leave no room for an answer in the context of {most} "
                "tokens; send less",
                param=field,
                code="context_length_exceeded",
            )
        return asked, ids

    def _ids(self, asked: Question) -> list[int]:
        if asked.messages is not None:
            return self.reader.template(asked.messages)
        if isinstance(asked.prompt, str):
            return self.reader.encode(asked.prompt)
        largest = self.batch.vocabulary - 1
        if wrong := [id for id in asked.prompt if not 0 <= id <= largest]:
            raise Refused(
                f"prompt: {str(wrong[0])[:40]} is no token id; give 0 to {largest}", param="prompt"
            )
        return asked.prompt


def application(api: Api) -> ASGIApp:
    """The ASGI application of a server."""
    routes = [
        Route("/", api.page),
        Route("/health", api.health),
        Route("/metrics", api.measured),
        Route("/v1/models", api.models),
        Route("/v1/models/{name:path}", api.model),
        Route("/v1/completions", api.completions, methods=["POST"]),
        Route("/v1/chat/completions", api.chat, methods=["POST"]),
    ]
    endpoints = {route.path for route in routes if "{" not in route.path}
    gate = Middleware(Gate, settings=api.settings, metrics=api.metrics, endpoints=endpoints)
    handlers = dict.fromkeys((Refused, HTTPException, Exception), _told)
    app = Starlette(routes=routes, middleware=[gate], exception_handlers=handlers)
    app.router.redirect_slashes = False  # it would send clients to what their Host header says
    return app


async def _told(request: Request, error: Exception) -> Response:
    """An error as the client gets it."""
    if isinstance(error, Refused):
        return refused(error)
    if not isinstance(error, HTTPException):
        return refused(failed())
    where = f"{request.method} {request.url.path[:80]}"
    if error.status_code == 404:
        words = f"path: {where} is unknown; see GET /v1/models, POST /v1/chat/completions"
    elif error.status_code == 405:
        words = f"method: {where} is not allowed; use {(error.headers or {}).get('Allow')}"
    else:
        words = f"request: {error.detail}"
    return refused(Refused(words, error.status_code, headers=error.headers))
