"""The body of a request, within its limit.

Knows sizes and the content type; nothing of what is inside.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from starlette.requests import ClientDisconnect

from edgekv.server.errors import Refusal

if TYPE_CHECKING:
    from starlette.requests import Request


async def read_body(request: Request, most_bytes: int) -> bytes:
    """The whole body. Raises Refusal: 413 where it is larger than `most_bytes`, 415 where it is no JSON."""
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind != "application/json":  # what a form of a web page cannot send
        raise Refusal(415, "the content type has to be application/json", code="invalid_content_type")
    parts, size = [], 0
    try:
        async for part in request.stream():
            size += len(part)
            if size <= most_bytes:
                parts.append(part)
            elif size > 2 * most_bytes:  # up to here it is read and dropped, so that the client reads why
                break
    except ClientDisconnect as error:
        raise Refusal(400, "the request ended in the middle", code="incomplete") from error
    if size > most_bytes:
        raise Refusal(413, f"the body is larger than {most_bytes} bytes", code="body_too_large")
    return b"".join(parts)
