"""What a client is told instead of an answer: a status and one line, in OpenAI's shape."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from edgeqat.errors import EdgeQATError

_KINDS = {401: "authentication_error", 403: "permission_error", 429: "rate_limit_error"}


class Refused(EdgeQATError):
    """A request that gets no answer, or no more of one; `param` names the field at fault."""

    def __init__(
        self,
        message: str,
        status: int = 400,
        param: str | None = None,
        code: str | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(" ".join(message.split()))
        self.status, self.param, self.code = status, param, code
        self.headers = dict(headers or {})

    def body(self) -> dict[str, Any]:
        """The JSON object that the client gets."""
        kind = "server_error" if self.status >= 500 else "invalid_request_error"
        error = {"message": str(self), "type": _KINDS.get(self.status, kind)}
        return {"error": {**error, "param": self.param, "code": self.code}}
