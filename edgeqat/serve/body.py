"""The body of a request, read as it comes, within its limits of bytes and seconds."""

from __future__ import annotations

import asyncio

from starlette.requests import Request

from edgeqat.serve.refusal import Refused

_SECONDS = 60
_DRAINED = 8  # times the limit: what is read on, so that the client gets to read the refusal


async def body_of(request: Request, most: int) -> bytes:
    """The bytes of a JSON body of at most `most`."""
    kind = request.headers.get("content-type", "")
    if kind.partition(";")[0].strip().lower() != "application/json":
        raise Refused(
            f"Content-Type: '{kind[:60]}' is not supported; send the header "
            "'Content-Type: application/json'",
            415,
        )
    chunks, size = [], 0
    try:
        async with asyncio.timeout(_SECONDS):
            async for chunk in request.stream():
                size += len(chunk)
                if size <= most:
                    chunks.append(chunk)
                else:
                    chunks.clear()
                if size > _DRAINED * most:
                    break
    except TimeoutError:
        raise Refused(
            f"body: it took longer than {_SECONDS} seconds; send it faster", 408,
            headers={"Connection": "close"},
        ) from None  # fmt: skip
    if size > most:
        raise Refused(
            f"body: it is larger than {most} bytes; send less, or start the server with a larger "
            "--max-body",
            413,
            headers={"Connection": "close"},
        )
    return b"".join(chunks)
