"""Who may speak to the server: checked before anything of a request is read.

Knows headers and the token. A web page that a person visits can make their browser send requests here: it is kept
out by the Host (a name that was pointed at this machine), by Origin and Sec-Fetch-Site, and by the token.
"""

from __future__ import annotations

import hmac
from typing import TYPE_CHECKING

from edgekv.server.errors import Refusal

if TYPE_CHECKING:
    from collections.abc import Callable

    from starlette.types import ASGIApp, Receive, Scope, Send

LOCAL_NAMES = ("127.0.0.1", "localhost", "[::1]")
OPEN_PATHS = ("/health",)
"""They tell nothing but that somebody listens, which connecting tells as well."""


class Guard:
    """ASGI middleware. `token=None` lets everybody in who reaches the socket and speaks to it by its own name."""

    def __init__(self, app: ASGIApp, *, token: str | None, count: Callable[[str, int], None]) -> None:
        self._app = app
        self._token = None if token is None else token.encode()
        self._count = count

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Refuse, or pass on."""
        if scope["type"] != "http":
            return  # neither websockets nor a lifespan
        try:
            self._check(scope["path"], scope["headers"])
        except Refusal as refusal:
            self._count("refused", refusal.status)
            await refusal.response()(scope, receive, send)
            return
        await self._app(scope, receive, send)

    def _check(self, path: str, headers: list[tuple[bytes, bytes]]) -> None:
        host = _check_host(headers)
        origin = _only(headers, b"origin")
        site = _only(headers, b"sec-fetch-site")
        is_foreign = origin is not None and origin != f"http://{host}"
        if is_foreign or site not in (None, "none", "same-origin"):
            raise Refusal(
                403, "web pages of other origins may not use this server", code="origin_not_allowed"
            )
        if self._token is None or path in OPEN_PATHS:
            return
        kind, _, given = (_only(headers, b"authorization") or "").partition(" ")
        if kind.lower() != "bearer" or not hmac.compare_digest(given.strip().encode("latin-1"), self._token):
            raise Refusal(
                401,
                "the bearer token is missing or wrong; the server's token file has it",
                code="invalid_api_key",
                headers={"WWW-Authenticate": "Bearer"},
            )


def _check_host(headers: list[tuple[bytes, bytes]]) -> str:
    host = (_only(headers, b"host") or "").lower()
    name, colon, port = host.rpartition(":")
    if not colon or not port.isdigit():
        name = host
    if name not in LOCAL_NAMES:
        raise Refusal(421, "this server is called 127.0.0.1 or localhost and nothing else", code="wrong_host")
    return host


def _only(headers: list[tuple[bytes, bytes]], name: bytes) -> str | None:
    """The value of a header that may stand once; None where it does not."""
    values = [value for key, value in headers if key == name]
    if len(values) > 1:
        raise Refusal(400, f"the header {name.decode()} stands there twice", code="invalid_header")
    return values[0].decode("latin-1") if values else None
