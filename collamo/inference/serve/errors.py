"""Errors as OpenAI's clients know them."""

from __future__ import annotations

from typing import Any

from collamo.errors import CollamoError, MoleculeError, UsageError

_TYPES = {
    401: "authentication_error",
    404: "not_found_error",
    429: "rate_limit_error",
}


class RequestError(CollamoError):
    """What is wrong with a request, with its HTTP status."""

    def __init__(
        self, status: int, message: str, code: str | None = None, param: str | None = None
    ):
        super().__init__(message)
        self.status = status
        self.code = code
        self.param = param


def request_error(error: Exception) -> RequestError:
    """Return what a client is told of an error."""
    if isinstance(error, RequestError):
        return error
    if isinstance(error, MoleculeError):
        return RequestError(400, str(error), "invalid_molecule", "messages")
    if isinstance(error, UsageError | ValueError):
        return RequestError(400, str(error))
    if isinstance(error, CollamoError):
        return RequestError(500, str(error))
    return RequestError(500, "the server failed; its log says why")


def error_object(error: RequestError) -> dict[str, Any]:
    """Return the body of an error's response."""
    fallback = "invalid_request_error" if error.status < 500 else "server_error"
    kind = _TYPES.get(error.status, fallback)
    found = {"message": str(error), "type": kind, "param": error.param, "code": error.code}
    return {"error": {name: value and _as_utf8(value) for name, value in found.items()}}


def _as_utf8(text: str) -> str:
    """Replace what no UTF-8 can say: halves of characters that a request had."""
    return text.encode("utf-8", "replace").decode()
