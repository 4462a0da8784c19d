"""One answer on its way: from the engine's thread to whoever waits for it.

Knows events, cancelling and time limits. Knows neither conversations nor the engine's insides.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Iterator
from typing import TYPE_CHECKING, Self

from edgekv.conversation.delivery import Delivery
from edgekv.errors import Cancelled, ContextOverflow, ConversationError
from edgekv.events import Done, PrefillProgress, Result, TextDelta, Timings, Usage
from edgekv.shortage import told_as

if TYPE_CHECKING:
    from collections.abc import Callable
    from types import TracebackType

    from edgekv.engine.request import EngineLike, Request
    from edgekv.events import Event


class CancelToken:
    """Stops, from any thread, every generation it was given to."""

    def __init__(self) -> None:
        self._lock = threading.RLock()  # a collected Stream may cancel in the middle of it
        self._cancelled = False
        self._callbacks: list[Callable[[], None]] = []

    @property
    def cancelled(self) -> bool:
        """Whether `cancel()` was called."""
        return self._cancelled

    def cancel(self) -> None:
        """Stop; what was generated so far is kept. More calls do nothing."""
        with self._lock:
            self._cancelled = True
            callbacks, self._callbacks = self._callbacks, []
        for callback in callbacks:
            callback()

    def subscribe(self, callback: Callable[[], None]) -> None:
        """Call `callback` once when cancelled, at once if that already happened."""
        with self._lock:
            if not self._cancelled:
                self._callbacks.append(callback)
                return
        callback()

    def unsubscribe(self, callback: Callable[[], None]) -> None:
        """Forget `callback`, so that a long-lived token does not keep old generations."""
        with self._lock:
            if callback in self._callbacks:
                self._callbacks.remove(callback)


class Mailbox:
    """Events waiting for a slow reader, joined so that their number stays small.

    Neighbouring text deltas become one and a newer prefill progress replaces an older: the engine never
    waits for a reader, and what waits is bounded by the answer's own length.
    """

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._events: deque[Event] = deque()
        self._error: BaseException | None = None
        self.on_change: Callable[[], None] | None = None

    def put(self, event: Event) -> None:
        """Add an event (any thread)."""
        with self._changed:
            last = self._events[-1] if self._events else None
            if isinstance(event, TextDelta) and isinstance(last, TextDelta):
                self._events[-1] = TextDelta(last.text + event.text, event.num_tokens)
            elif isinstance(event, PrefillProgress) and isinstance(last, PrefillProgress):
                self._events[-1] = event
            else:
                self._events.append(event)
            self._changed.notify_all()
        self._tell()

    def fail(self, error: BaseException) -> None:
        """Let the reader raise `error` after the events before it."""
        with self._changed:
            self._error = error
            self._changed.notify_all()
        self._tell()

    def get(self, timeout: float | None = None) -> Event | None:
        """The next event; None when `timeout` seconds passed without one. Raises what `fail` was given."""
        with self._changed:
            self._changed.wait_for(lambda: self._events or self._error is not None, timeout)
            if self._events:
                event = self._events.popleft()
                if isinstance(event, Done):  # stays: a signal may strike before the reader holds it
                    self._events.append(event)
                return event
            if self._error is not None:
                raise self._error
            return None

    def _tell(self) -> None:
        if self.on_change is not None:
            self.on_change()


class Generation:
    """One request between the moment it is queued and the moment its answer is committed.

    Whoever claims it first finishes it: the engine's thread by running it, or a caller by cancelling it
    while it still waits in the queue. The answer is committed before anyone is told that it is done.
    """

    def __init__(
        self,
        request: Request,
        commit: Callable[[Result], Result],
        *,
        timeout: float | None = None,
        token: CancelToken | None = None,
    ) -> None:
        self.request = request
        self.mailbox = Mailbox()
        self.deadline = None if timeout is None else time.monotonic() + timeout
        self._commit = commit
        self._token = token
        self._claim = threading.Lock()
        self._cancelled = False
        self._finished = threading.Event()

    @property
    def finished(self) -> bool:
        """Whether the answer is committed (or has failed) and the conversation may go on."""
        return self._finished.is_set()

    @property
    def was_told_to_stop(self) -> bool:
        """Whether `cancel()` was called (a time limit alone does not count)."""
        return self._cancelled

    def wait(self) -> None:
        """Wait until `finished`."""
        self._finished.wait()

    def is_cancelled(self) -> bool:
        """Whether the engine should stop now."""
        return self._cancelled or (self.deadline is not None and time.monotonic() >= self.deadline)

    def queued(self) -> None:
        """Called once it is in the queue: from now on the token may stop it."""
        if self._token is not None:
            self._token.subscribe(self.cancel)
            if self.finished:  # before there was anything to unsubscribe
                self._token.unsubscribe(self.cancel)

    def cancel(self) -> None:
        """Stop within one prefill block or one token; at once while it waits in the queue."""
        self._cancelled = True
        if self._claim.acquire(blocking=False):
            self._finish(lambda: self._commit(_stopped(self.request, "")))

    def run(self, engine: EngineLike) -> None:
        """Generate, in the engine's thread; errors go to the reader."""
        if self._claim.acquire(blocking=False):
            self._finish(lambda: self._commit(self._generate(engine)))

    def fail(self, error: BaseException) -> None:
        """Give it up with `error` if nobody has begun it."""
        if self._claim.acquire(blocking=False):
            self._finished.set()
            self.mailbox.fail(error)

    def _generate(self, engine: EngineLike) -> Result:
        """The engine's answer; if it fails, what the reader already has of it is kept first."""
        said: list[str] = []

        def emit(event: Event) -> None:
            if isinstance(event, TextDelta):
                said.append(event.text)
            self.mailbox.put(event)

        try:
            return engine.generate(self.request, emit, self.is_cancelled)
        except ContextOverflow:
            raise
        except BaseException:
            if said:
                self._commit(_stopped(self.request, "".join(said)))
            raise

    def _finish(self, work: Callable[[], Result]) -> None:
        try:
            result = work()
        except BaseException as error:  # noqa: BLE001  handed to the reader, as a future does
            self._ended()
            self.mailbox.fail(told_as(error))
        else:
            self._ended()
            self.mailbox.put(Done(result))

    def _ended(self) -> None:
        # Before Done is seen: its reader may send the next message at once and must not be told "busy".
        self._finished.set()
        if self._token is not None:
            self._token.unsubscribe(self.cancel)


def _stopped(request: Request, text: str) -> Result:
    """What is known of an answer that no engine finished."""
    return Result(
        text=text,
        token_ids=(),
        finish_reason="cancelled",
        usage=Usage(prompt_tokens=len(request.token_ids), completion_tokens=0, reused_tokens=0),
        timings=Timings(ttft_s=0.0, prefill_tokens_per_s=0.0, decode_tokens_per_s=0.0),
    )


class Stream(Iterator["Event"]):
    """The events of one answer; the last one is `Done`.

    Leaving it early stops the computation: `close()`, the end of a `with`, or dropping it (as `break` in
    a `for` over an unnamed stream does). What was generated by then is kept in the conversation.
    """

    def __init__(self, generation: Generation) -> None:
        self._generation = generation
        self._exhausted = False

    def __iter__(self) -> Self:
        return self

    def __next__(self) -> Event:
        if self._exhausted:
            raise StopIteration
        event = self._next_event()
        self._exhausted = isinstance(event, Done)
        return event

    def _next_event(self) -> Event:
        generation = self._generation
        while True:
            event = generation.mailbox.get(self.remaining_s())
            if event is not None:
                return event
            generation.cancel()  # its time is over; while it waits in the queue nobody else would notice

    def poll(self) -> Event | None:
        """The next event if there is one already; raises like iterating does."""
        return self._generation.mailbox.get(0)

    def notify(self, on_change: Callable[[], None]) -> None:
        """Call `on_change`, in the thread that makes it happen, when an event may be polled."""
        self._generation.mailbox.on_change = on_change

    def deliver(
        self,
        handle: Callable[[Event | BaseException], object],
        schedule: Callable[[Callable[[], None]], object] | None = None,
    ) -> None:
        """Push the events to `handle` instead of reading them: the one hook that a GUI's event loop needs.

        `schedule` runs a function in the GUI's thread soon and may be called from any thread (asyncio's
        `loop.call_soon_threadsafe`, GTK's `GLib.idle_add`, a Qt signal). Without it `handle` is called in whichever
        thread makes an event, the engine's mostly, and must be quick. It is never called twice at once; the last
        thing it gets is Done, or the error that the answer failed with. An error of its own ends the delivery.
        """
        Delivery(self, handle, schedule or (lambda drain: drain())).begin()

    def remaining_s(self) -> float | None:
        """Seconds until the time limit is worth acting on; None if there is none or it was acted on."""
        generation = self._generation
        if generation.deadline is None or generation.was_told_to_stop:
            return None
        return max(generation.deadline - time.monotonic(), 0.0)

    def cancel(self) -> None:
        """Ask it to stop; the stream then ends with the `Done` of what there is."""
        self._generation.cancel()

    def close(self) -> None:
        """Stop it and wait until what was generated is kept; nothing more is yielded."""
        self._exhausted = True
        self._generation.cancel()
        self._generation.wait()

    def result(self) -> Result:
        """Read to the end. Raises Cancelled, carrying the partial result, if it was stopped."""
        for event in self:
            if isinstance(event, Done):
                if event.result.finish_reason == "cancelled":
                    raise Cancelled(event.result)
                return event.result
        raise ConversationError("this stream was already read to its end or closed")

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    def __del__(self) -> None:
        # Only asks: this may run in any thread, the engine's included, so it must not wait.
        if not self._generation.finished:
            self._generation.cancel()
