"""A server from its start to its end: the socket first, then the engine, then uvicorn until a
signal comes.
"""

from __future__ import annotations

import ipaddress
import logging
import signal
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType

import uvicorn

from edgeqat import native
from edgeqat.errors import UsageError
from edgeqat.pipeline.generate import check_text_model
from edgeqat.runtime.batch import Batch
from edgeqat.runtime.engine import Engine
from edgeqat.serve.api import Api, application
from edgeqat.serve.connection import Connection
from edgeqat.serve.metrics import Metrics
from edgeqat.serve.scheduler import Scheduler
from edgeqat.serve.settings import Settings
from edgeqat.serve.text import Reader, Writer

_END_SECONDS = 3  # for connections after the signal
_WAITING_CONNECTIONS = 512
_logger = logging.getLogger("edgeqat")


def bound(host: str, port: int) -> socket.socket:
    """A listening socket; a UsageError where there is none to have."""
    try:
        family, kind, proto, _, address = socket.getaddrinfo(
            host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
    except (OSError, UnicodeError):
        raise UsageError(
            f"host: '{host}' is no address of this machine; use 127.0.0.1 or 0.0.0.0"
        ) from None
    opened = socket.socket(family, kind, proto)
    try:
        opened.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        opened.bind(address)
        opened.listen(_WAITING_CONNECTIONS)
    except OSError as error:
        opened.close()
        raise UsageError(
            f"port: {port} of {host} cannot be had ({error.strerror}); choose another --port, or 0 "
            "for a free one"
        ) from None
    return opened


def url_of(opened: socket.socket) -> str:
    """Where a socket is to be found."""
    host, port = opened.getsockname()[:2]
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"


def is_loopback(opened: socket.socket) -> bool:
    """Whether only this machine reaches a socket."""
    return ipaddress.ip_address(opened.getsockname()[0].partition("%")[0]).is_loopback


@contextmanager
def opened_api(
    folder: Path, settings: Settings, threads: int | None, context: int | None
) -> Iterator[Api]:
    """What answers: the engine of a folder with its thread, which end behind the block."""
    check_text_model(folder)
    native.require()
    try:
        engine = Engine(folder, threads, context)
    except native.UnsupportedModel as error:
        raise UsageError(
            f"serve: the engine does not run '{folder}' ({error}); use `edgeqat generate --engine "
            "torch`"
        ) from None
    with engine:
        reader, writer, metrics = Reader(folder), Writer(folder), Metrics()
        batch = Batch(engine, settings.parallel, context)
        scheduler = Scheduler(batch, writer, settings.queue, metrics)
        scheduler.start()
        try:
            yield Api(settings, batch, reader, scheduler, metrics, int(time.time()))
        finally:
            scheduler.close()
            batch.close()


class Server(uvicorn.Server):
    """uvicorn, which ends running answers when a signal comes and then simply returns."""

    def __init__(self, api: Api, ready: Callable[[], None]) -> None:
        super().__init__(
            uvicorn.Config(
                application(api),
                log_config=None,
                access_log=False,
                lifespan="off",
                ws="none",
                http=Connection,
                loop="asyncio",
                server_header=False,
                proxy_headers=False,
                timeout_graceful_shutdown=_END_SECONDS,
            )
        )
        self._api, self._ready = api, ready

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Begin to serve, and say so."""
        await super().startup(sockets)
        self._ready()

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """End answers first: their connections are what uvicorn waits for."""
        self._api.scheduler.stop()
        await super().shutdown(sockets)

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        """uvicorn would raise the signals again at the end; ours have done all they should."""
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        before = {one: signal.signal(one, self._end) for one in (signal.SIGINT, signal.SIGTERM)}
        try:
            yield
        finally:
            for one, handler in before.items():
                signal.signal(one, handler)

    def _end(self, number: int, frame: FrameType | None) -> None:
        self.force_exit = self.should_exit  # the second one does not wait for connections
        self.should_exit = True


def serve(
    folder: Path,
    opened: socket.socket,
    settings: Settings,
    threads: int | None = None,
    context: int | None = None,
    ready: Callable[[str], None] = _logger.info,
) -> None:
    """Serve a folder on a listening socket until SIGINT or SIGTERM; `ready` is told the address."""
    if not settings.local and settings.api_key is None:
        _logger.warning(
            "host: everybody who reaches %s may use the model; set --api-key, or EDGEQAT_API_KEY",
            url_of(opened),
        )
    with opened, opened_api(folder, settings, threads, context) as api:
        Server(api, lambda: ready(url_of(opened))).run([opened])
