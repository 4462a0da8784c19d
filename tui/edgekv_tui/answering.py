"""One answer on its way, as the screen sees it: it grows many times a second, not once for each token.

Knows a stream's events and the event loop. Does not know widgets: it tells one listener that it has changed.
Nobody may listen for a while (another conversation is on the screen): the answer goes on all the same.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from typing import TYPE_CHECKING

from edgekv import Done, EdgeKVError, Notice, PrefillProgress, TextDelta
from edgekv_tui.text import shown

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from edgekv import Event, Result, Stream

PAUSE_S = 0.04
"""Least time between two updates. A long update is followed by a pause twice as long: keys come first."""


class Answering:
    """`text`, `progress`, `notices`, then `result` or `error`. Everything in it belongs to the event loop."""

    def __init__(self, user: str, *, turn: int) -> None:
        """`turn` is the place of the answered message in its branch, from 0."""
        self.user = user
        self.turn = turn
        self.text = ""
        self.progress: PrefillProgress | None = None
        self.notices: list[str] = []
        self.result: Result | None = None
        self.error: EdgeKVError | None = None
        self.is_stopping = False
        self.began = time.monotonic()
        self.first_text_at: float | None = None
        self.first_tokens = 0
        self.num_tokens = 0
        self.on_change: Callable[[], Awaitable[None]] | None = None
        self._stream: Stream | None = None

    @property
    def tokens_per_s(self) -> float:
        """How fast it is written, so far."""
        elapsed = time.monotonic() - (self.first_text_at or time.monotonic())
        return (self.num_tokens - self.first_tokens) / elapsed if elapsed > 0 else 0.0

    @property
    def has_ended(self) -> bool:
        """Whether nothing more will come."""
        return self.result is not None or self.error is not None

    def stop(self) -> None:
        """Ask it to end; what there is of it is kept. Works in prefill, in decode and in the queue."""
        self.is_stopping = True
        if self._stream is not None:
            self._stream.cancel()

    async def run(self, begin: Callable[[], Stream]) -> None:
        """Begin it in a thread and follow it to its end; `error` then says what went wrong, if anything did."""
        try:
            self._stream = await asyncio.to_thread(begin)
            if self.is_stopping:
                self._stream.cancel()
            await self._follow(self._stream)
        except EdgeKVError as error:
            self.error = error
        except Exception as error:  # noqa: BLE001  the edge: whatever the engine died of must not end the chat
            self.error = EdgeKVError(f"internal error {type(error).__name__}: {error}")
        finally:
            if self._stream is not None and self.result is None:
                self._stream.cancel()
        if self.error is not None:
            try:
                await self._tell()
            except Exception:  # noqa: BLE001  what could not be drawn before: `error` says it already
                self.on_change = None

    async def _follow(self, stream: Stream) -> None:
        loop = asyncio.get_running_loop()
        changed = asyncio.Event()
        is_told = False

        def tell() -> None:
            nonlocal is_told
            if not is_told:  # one wake-up for all that comes until it is read
                is_told = True
                with contextlib.suppress(RuntimeError):  # the loop was closed: nobody waits any more
                    loop.call_soon_threadsafe(changed.set)

        stream.notify(tell)
        changed.set()
        while not self.has_ended:
            try:
                await asyncio.wait_for(changed.wait(), stream.remaining_s())
            except TimeoutError:
                stream.cancel()
            changed.clear()
            is_told = False
            while not self.has_ended and (event := stream.poll()) is not None:
                self._take(event)
            began = time.monotonic()
            await self._tell()
            if not self.has_ended:
                await asyncio.sleep(max(PAUSE_S, 2 * (time.monotonic() - began)))

    def _take(self, event: Event) -> None:
        match event:
            case PrefillProgress():
                self.progress = event
            case TextDelta(text, num_tokens):
                self.first_text_at = self.first_text_at or time.monotonic()
                self.first_tokens = self.first_tokens or num_tokens
                self.num_tokens = num_tokens
                self.text += shown(text)
            case Notice(message):
                self.notices.append(shown(message))
            case Done(result):
                self.result = result

    async def _tell(self) -> None:
        if self.on_change is not None:
            await self.on_change()
