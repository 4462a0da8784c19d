"""One answer on its way over HTTP, whole or as server-sent events.

Knows streams of events and ASGI. A client that goes away, in prefill too, stops the computation; what fails before
the first event has its own status, later it is an event of the stream.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Protocol

import msgspec

from edgekv import CancelToken, Done, PrefillProgress, TextDelta
from edgekv.server.errors import refusal_of

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable

    from starlette.types import Receive, Scope, Send

    from edgekv import Event, Result
    from edgekv.server.shapes import Json, Shape

_JSON_HEADERS = [(b"content-type", b"application/json"), (b"cache-control", b"no-store")]
_EVENT_HEADERS = [(b"content-type", b"text/event-stream; charset=utf-8"), (b"cache-control", b"no-store")]


class EventSource(Protocol):
    """What an answer is made from: an `AsyncStream`, mostly."""

    def __aiter__(self) -> AsyncIterator[Event]:
        """The events; the last one is Done."""
        ...

    async def aclose(self) -> None:
        """Stop, and wait until it stopped."""
        ...


class Answer:
    """An ASGI response. `begin` is called with the token that stops it; `done` gets the result, or None."""

    def __init__(
        self,
        shape: Shape,
        begin: Callable[[CancelToken], Awaitable[EventSource]],
        done: Callable[[Result | None], Awaitable[None]],
        count: Callable[[int, Result | None], None],
        *,
        streams: bool,
        with_usage: bool,
    ) -> None:
        self._shape = shape
        self._begin = begin
        self._done = done
        self._count = count
        self._streams = streams
        self._with_usage = with_usage
        self._status = 0  # of the headers, once they were sent
        self._result: Result | None = None

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer the request whose body was read already."""
        token = CancelToken()
        watcher = asyncio.create_task(_cancel_when_gone(receive, token))
        status = 500
        try:
            status = await self._run(token, scope, receive, send)
        finally:
            watcher.cancel()
            self._count(status, self._result)
            await asyncio.shield(self._done(self._result))

    async def _run(self, token: CancelToken, scope: Scope, receive: Receive, send: Send) -> int:
        try:
            source = await self._begin(token)
            try:
                await self._send_all(source, send)
            finally:
                await source.aclose()
        except Exception as error:  # noqa: BLE001  the outer edge
            refusal = refusal_of(error)
            if not self._status:
                await refusal.response()(scope, receive, send)
                return refusal.status
            await _event(send, refusal.body())
            await send({"type": "http.response.body"})
            return refusal.status
        return self._status

    async def _send_all(self, source: EventSource, send: Send) -> None:
        async for event in source:
            if self._streams and not self._status:
                await self._start(send, _EVENT_HEADERS)
                for chunk in self._shape.chunks_before():
                    await _event(send, chunk)
            match event:
                case TextDelta(text) if self._streams:
                    await _event(send, self._shape.chunk(text))
                case PrefillProgress(done, total, reused) if self._streams:
                    # A comment, which clients skip: nothing else is sent meanwhile, and silence looks like death.
                    await _body(send, f": prefill {done}/{total}, {reused} reused\n\n".encode())
                case Done(result):
                    self._result = result
        assert self._result is not None, "every stream ends with Done"
        if not self._streams:
            await self._start(send, _JSON_HEADERS)
            await _body(send, msgspec.json.encode(self._shape.whole(self._result)), more=False)
            return
        for chunk in self._shape.chunks_after(self._result, with_usage=self._with_usage):
            await _event(send, chunk)
        await _body(send, b"data: [DONE]\n\n", more=False)

    async def _start(self, send: Send, headers: list[tuple[bytes, bytes]]) -> None:
        self._status = 200
        await send({"type": "http.response.start", "status": 200, "headers": headers})


async def _cancel_when_gone(receive: Receive, token: CancelToken) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass
    token.cancel()


async def _event(send: Send, value: Json) -> None:
    await _body(send, b"data: " + msgspec.json.encode(value) + b"\n\n")


async def _body(send: Send, body: bytes, *, more: bool = True) -> None:
    await send({"type": "http.response.body", "body": body, "more_body": more})
