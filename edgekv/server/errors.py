"""What a client is told when it is not answered: a status and the error object of the OpenAI protocol.

Knows statuses and the public error types. What a request can cause is 4xx; 5xx means that the server cannot.
"""

from __future__ import annotations

import logging
import traceback
from typing import TYPE_CHECKING

from starlette.responses import JSONResponse

from edgekv import (
    Busy,
    CapacityError,
    Closed,
    ConfigError,
    ContextOverflow,
    ConversationError,
    EdgeKVError,
    ModelLoadError,
    OutOfMemory,
    StoreError,
    TemplateError,
    Unsupported,
)
from edgekv.shortage import told_as

if TYPE_CHECKING:
    from collections.abc import Mapping

log = logging.getLogger("edgekv.server")

_STATUS: dict[type[EdgeKVError], tuple[int, str]] = {
    ContextOverflow: (400, "context_length_exceeded"),
    CapacityError: (400, "capacity_exceeded"),
    ConfigError: (400, "invalid_value"),
    ConversationError: (400, "invalid_messages"),
    TemplateError: (400, "template_error"),
    Unsupported: (400, "unsupported_value"),
    StoreError: (409, "cannot_be_kept"),
    Busy: (429, "busy"),
    Closed: (503, "closed"),
    ModelLoadError: (503, "model_not_loaded"),
    OutOfMemory: (503, "out_of_memory"),
}


class Refusal(Exception):
    """A request that is not answered. `message` is one line that says what to do instead."""

    def __init__(
        self,
        status: int,
        message: str,
        *,
        code: str,
        param: str | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(message)
        self.status = status
        self.message = message
        self.code = code
        self.param = param
        self.headers = headers

    @property
    def kind(self) -> str:
        """The protocol's `type`."""
        if self.status == 401:
            return "authentication_error"
        if self.status == 429:
            return "rate_limit_error"
        return "invalid_request_error" if self.status < 500 else "server_error"

    def body(self) -> dict[str, object]:
        """The error object."""
        error = {"message": self.message, "type": self.kind, "param": self.param, "code": self.code}
        return {"error": error}

    def response(self) -> JSONResponse:
        """As an HTTP response."""
        return JSONResponse(self.body(), status_code=self.status, headers=self.headers)


def unsupported(param: str, what: str) -> Refusal:
    """Something that edgekv does not do, whatever its value."""
    return Refusal(
        400, f"{param}: edgekv does not do {what}; leave it out", code="unsupported_parameter", param=param
    )


def refusal_of(error: BaseException) -> Refusal:
    """What a client is told of `error`. Of an unexpected one only where it happened is logged, and nothing said."""
    if isinstance(error, Refusal):
        return error
    error = told_as(error)
    if isinstance(error, EdgeKVError):
        status, code = _STATUS.get(type(error), (500, "internal_error"))
        headers = {"Retry-After": "1"} if status == 429 else None
        param = error.option if isinstance(error, ConfigError) else None
        return Refusal(status, " ".join(str(error).split()), code=code, param=param, headers=headers)
    frames = "".join(traceback.format_tb(error.__traceback__))  # its text may quote a conversation
    log.error("%s in the server\n%s", type(error).__name__, frames)
    return Refusal(
        500, f"internal error {type(error).__name__}; the server's log says where", code="internal_error"
    )
