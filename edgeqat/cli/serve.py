"""`edgeqat serve`: an HTTP server with OpenAI's API on a packed folder."""

from __future__ import annotations

import os
from importlib.util import find_spec
from pathlib import Path
from typing import Annotated

import typer

from edgeqat import log
from edgeqat.cli.options import ThreadsOption
from edgeqat.errors import UsageError

EXAMPLES = (
    "edgeqat serve FOLDER",
    "edgeqat serve FOLDER --host 0.0.0.0 --port 8080 --api-key KEY --parallel 8",
)
_PACKAGES = ("starlette", "uvicorn", "prometheus_client")
_MEGABYTE = 1_000_000


def command(
    folder: Annotated[Path, typer.Argument(help="Packed folder.")],
    host: Annotated[
        str, typer.Option("--host", help="Address to listen at; 0.0.0.0: every one.")
    ] = "127.0.0.1",
    port: Annotated[
        int, typer.Option("--port", min=0, max=65535, help="Port; 0: a free one.")
    ] = 8000,
    name: Annotated[
        str | None,
        typer.Option("--name", help="What clients call the model; default: the folder's name."),
    ] = None,
    parallel: Annotated[
        int,
        typer.Option("--parallel", min=1, max=256, help="Requests at a time, each with a cache."),
    ] = 4,
    queue: Annotated[
        int, typer.Option("--queue", min=0, help="Requests that may wait; others get a 429.")
    ] = 64,
    timeout: Annotated[
        float, typer.Option("--timeout", min=0.001, help="Seconds of a request, with waiting.")
    ] = 600.0,
    max_body: Annotated[
        float,
        typer.Option("--max-body", min=0.001, max=1000, help="MB of a request; others get a 413."),
    ] = 4.0,
    context: Annotated[
        int | None,
        typer.Option("--context", min=2, help="Tokens of a request; default: the model's."),
    ] = None,
    threads: ThreadsOption = None,
    api_key: Annotated[
        str | None,
        typer.Option("--api-key", help="Key that clients must send; else EDGEQAT_API_KEY."),
    ] = None,
    access_log: Annotated[
        bool, typer.Option("--access-log", help="Log a line for each request.")
    ] = False,
) -> None:
    """Serve a packed folder over HTTP with OpenAI's API.

    A page to chat is there too. It listens on this machine alone unless --host says otherwise.
    Ctrl-C ends it.
    """
    log.setup()
    if absent := [package for package in _PACKAGES if find_spec(package) is None]:
        raise UsageError(f"serve: {absent[0]} is not installed; pip install 'edgeqat[serve]'")
    from edgeqat.serve.server import bound, is_loopback, serve
    from edgeqat.serve.settings import Settings

    opened = bound(host, port)
    with opened:
        settings = Settings(
            name or folder.resolve().name,
            parallel,
            queue,
            timeout,
            int(max_body * _MEGABYTE),
            _key(api_key),
            access_log,
            is_loopback(opened),
        )
        serve(folder, opened, settings, threads, context, lambda url: _tell(settings.name, url))


def _key(given: str | None) -> str | None:
    """The option or the variable; neither is absence, an empty option a mistake."""
    key = os.environ.get("EDGEQAT_API_KEY") or None if given is None else given
    if key is not None and not (key.isascii() and key.isprintable() and key.strip() == key != ""):
        raise UsageError("api-key: it is empty or no plain ASCII; give letters and digits")
    return key


def _tell(name: str, url: str) -> None:
    print(f"serving {name} at {url} (chat page, and OpenAI's API under {url}/v1)", flush=True)
