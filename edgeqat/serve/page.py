"""The page to chat in a browser: one file, without anything from elsewhere.

Its policy names the hashes of its own script and style, so that the browser runs nothing else, even
if a model's answer were taken for markup.
"""

from __future__ import annotations

import base64
import hashlib
import re
from functools import lru_cache
from pathlib import Path

FILE = "page.html"


@lru_cache(maxsize=1)
def html() -> bytes:
    """The page."""
    return Path(__file__).with_name(FILE).read_bytes()


@lru_cache(maxsize=1)
def headers() -> dict[str, str]:
    """Its headers, among them the policy."""
    policy = (
        f"default-src 'none'; script-src {_hash('script')}; style-src {_hash('style')}; "
        "connect-src 'self'; img-src data:; base-uri 'none'; form-action 'none'; "
        "frame-ancestors 'none'"
    )
    return {
        "Content-Type": "text/html; charset=utf-8",
        "Content-Security-Policy": policy,
        "X-Content-Type-Options": "nosniff",
        "Referrer-Policy": "no-referrer",
        "Cache-Control": "no-cache",
    }


def _hash(tag: str) -> str:
    found = re.search(rf"<{tag}>(.*?)</{tag}>", html().decode(), re.DOTALL)
    assert found
    digest = hashlib.sha256(found[1].encode()).digest()
    return f"'sha256-{base64.b64encode(digest).decode()}'"
