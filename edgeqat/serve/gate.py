"""Who may come in: an API key, and the names that this machine answers to.

A page of another site can make a browser send requests here. It cannot read the answers, as there
are no CORS headers, and it cannot send JSON. Only a name that is made to lead here (DNS rebinding)
would get around that, so on this machine alone the Host header must name it.
"""

from __future__ import annotations

import hmac
import json
import logging
import time
from ipaddress import ip_address

from starlette.datastructures import Headers
from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from edgeqat.serve.metrics import Metrics
from edgeqat.serve.refusal import Refused
from edgeqat.serve.settings import Settings

_OPEN = ("/", "/health")  # without a key: the page asks for it, and holds nothing secret
GONE = 499  # what logs call a client that did not wait
_logger = logging.getLogger("edgeqat")


class Gate:
    """An ASGI application in front of another one, which also counts what passes."""

    def __init__(
        self, app: ASGIApp, settings: Settings, metrics: Metrics, endpoints: set[str]
    ) -> None:
        self._app, self._settings, self._metrics = app, settings, metrics
        self._endpoints = endpoints

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Let a request pass or refuse it."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        status, start = GONE, time.monotonic()

        async def counted(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
            await send(message)

        try:
            refusal = self._refusal(scope["path"], Headers(scope=scope))
            await (self._app if refusal is None else refused(refusal))(scope, receive, counted)
        except Exception:
            status = 500  # what the application around this one sends
            raise
        finally:
            path = scope["path"] if scope["path"] in self._endpoints else "other"
            self._metrics.requests.labels(path, str(status)).inc()
            if self._settings.access_log:
                seconds = time.monotonic() - start
                _logger.info("%s %s %d %.3f s", scope["method"], path, status, seconds)

    def _refusal(self, path: str, headers: Headers) -> Refused | None:
        host = headers.get("host", "")
        if self._settings.local and not is_local(host):
            return Refused(
                f"Host: '{host[:60]}' is not this machine; call it localhost or 127.0.0.1, or "
                "start the server with --host",
                403,
                code="host_not_allowed",
            )
        if self._settings.api_key is None or path in _OPEN:
            return None
        scheme, _, key = headers.get("authorization", "").partition(" ")
        # both are text of headers, so latin-1
        same = hmac.compare_digest(key.strip().encode("latin-1"), self._settings.api_key.encode())
        if scheme.lower() != "bearer" or not same:
            return Refused(
                "Authorization: the API key is missing or wrong; send 'Authorization: Bearer KEY'",
                401,
                code="invalid_api_key",
                headers={"WWW-Authenticate": "Bearer"},
            )
        return None


def is_local(host: str) -> bool:
    """Whether a Host header, with a port or without, names the machine itself."""
    name = host[1:].partition("]")[0] if host.startswith("[") else host.partition(":")[0]
    if name.lower().rstrip(".") == "localhost":
        return True
    try:
        return ip_address(name).is_loopback
    except ValueError:
        return False


def refused(refusal: Refused) -> Response:
    """A refusal as a response, in ASCII: what it quotes may have no UTF-8."""
    headers = {"Content-Type": "application/json", **refusal.headers}
    return Response(json.dumps(refusal.body()), refusal.status, headers)
