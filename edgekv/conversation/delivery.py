"""Events pushed to a handler instead of being read: for programs that have an event loop of their own.

Knows a stream, a handler and how to get into the handler's thread. Knows no GUI library.
"""

from __future__ import annotations

import logging
import threading
from typing import TYPE_CHECKING

from edgekv.events import Done

if TYPE_CHECKING:
    from collections.abc import Callable

    from edgekv.conversation.stream import Stream
    from edgekv.events import Event

log = logging.getLogger("edgekv")


class Delivery:
    """See `Stream.deliver`. One drain is scheduled at a time, however many events come."""

    def __init__(
        self,
        stream: Stream,
        handle: Callable[[Event | BaseException], object],
        schedule: Callable[[Callable[[], None]], object],
    ) -> None:
        self._stream = stream
        self._handle = handle
        self._schedule = schedule
        self._lock = threading.Lock()
        self._is_scheduled = False
        self._has_changed = False
        self._has_ended = False
        self._timer: threading.Timer | None = None

    def begin(self) -> None:
        """Deliver what is there already, and from now on whatever comes."""
        remaining_s = self._stream.remaining_s()
        if (
            remaining_s is not None
        ):  # while it waits in the queue nobody else would notice that its time is over
            self._timer = threading.Timer(remaining_s, self._stream.cancel)
            self._timer.daemon = True
            self._timer.start()
        self._stream.notify(self._changed)
        self._changed()

    def _changed(self) -> None:
        with self._lock:
            self._has_changed = True
            if self._is_scheduled or self._has_ended:
                return
            self._is_scheduled = True
        try:
            self._schedule(self._drain)
        except Exception:  # the caller's code in the engine's thread, which serves others too
            log.exception("a handler of events failed; the answer is stopped")
            self._stop()

    def _drain(self) -> None:
        """Hand over all events there are. What comes meanwhile is seen before it returns."""
        while True:
            with self._lock:
                self._has_changed = False
            while not self._has_ended and (event := self._next()) is not None:
                if isinstance(event, Done | BaseException):
                    self._end()
                try:
                    self._handle(event)
                except BaseException:
                    self._stop()
                    raise
            with self._lock:
                if not self._has_changed or self._has_ended:
                    self._is_scheduled = False
                    return

    def _next(self) -> Event | BaseException | None:
        try:
            return self._stream.poll()
        except BaseException as error:  # noqa: BLE001  what the answer failed with, for the handler
            return error

    def _end(self) -> None:
        self._has_ended = True
        if self._timer is not None:
            self._timer.cancel()

    def _stop(self) -> None:
        self._end()
        self._stream.cancel()
