"""The one thread that owns the engine, and the bounded queue in front of it.

Knows generations and calls as opaque work. Does not know conversations, models or where answers go.
"""

from __future__ import annotations

import os
import sys
import threading
import traceback
from concurrent.futures import Future
from contextlib import suppress
from queue import Empty, SimpleQueue
from typing import TYPE_CHECKING, TypeVar

from edgekv.conversation.stream import Generation
from edgekv.errors import Busy, Closed
from edgekv.shortage import told_as

if TYPE_CHECKING:
    from collections.abc import Callable

    from edgekv.conversation.render import FrontLike
    from edgekv.engine.request import EngineLike, Expect

T = TypeVar("T")
NICENESS = 5


def _let_others_first() -> None:
    """Whoever asks also draws and listens: where both want a processor, its threads go first.

    Linux: for this thread and those that it starts, which compute.
    """
    if sys.platform == "linux":
        with suppress(OSError):
            os.setpriority(os.PRIO_PROCESS, 0, os.getpriority(os.PRIO_PROCESS, 0) + NICENESS)


class _Call:
    """A function to run in the engine's thread, and where its outcome goes."""

    def __init__(self, function: Callable[[EngineLike], object]) -> None:
        self._function = function
        self.future: Future[object] = Future()

    def run(self, engine: EngineLike) -> None:
        try:
            self.future.set_result(self._function(engine))
        except BaseException as error:  # noqa: BLE001  raised again in the caller's thread
            self.future.set_exception(told_as(error))

    def fail(self, error: BaseException) -> None:
        """Give it up: nobody will run it."""
        self.future.set_exception(error)


class EngineThread:
    """Builds the engine in its own thread, runs what is submitted in order, and closes it there.

    The constructor returns when the engine is ready and raises what building it raised. An engine that fails
    outside of a request ends the thread: who waits, and every later call, is told why. Closed, it keeps
    neither the engine nor the model's face, whoever may still hold this object.
    """

    def __init__(
        self,
        build: Callable[[], tuple[EngineLike, FrontLike]],
        *,
        queue_size: int,
        keep_alive_s: float | None = None,
    ) -> None:
        """`keep_alive_s`: seconds without work after which the engine is unloaded (None: never)."""
        self._pid = os.getpid()
        self._queue_size = queue_size
        self._keep_alive_s = keep_alive_s
        self._slots = threading.BoundedSemaphore(queue_size)
        self._queue: SimpleQueue[Generation | _Call | None] = SimpleQueue()
        self._lock = threading.RLock()
        self._outstanding: set[Generation] = set()
        self._closed = False
        self._running = False
        self._notices: list[str] = []
        self._loaded: tuple[EngineLike, FrontLike] | None = None
        self._failure: BaseException | None = None
        self._close_error: BaseException | None = None
        # A daemon, or a Runtime that nobody closed would keep the interpreter from ending.
        ready: Future[None] = Future()
        self._thread = threading.Thread(
            target=self._main, args=(build, ready), name="edgekv-engine", daemon=True
        )
        self._thread.start()
        try:
            ready.result()
        except BaseException:
            self._closed = True
            self._queue.put(None)
            raise

    @property
    def is_generating(self) -> bool:
        """Whether a generation is running now."""
        return self._running

    @property
    def engine(self) -> EngineLike:
        """The engine, for the calls that any thread may make. Raises Closed after `close()`."""
        return self._require_loaded()[0]

    @property
    def front(self) -> FrontLike:
        """The model's face. Raises Closed after `close()`."""
        return self._require_loaded()[1]

    def where(self, sequence_id: bytes) -> str:
        """The tier of each column of a sequence."""
        return self.engine.where(sequence_id)

    def hint(self, sequence_id: bytes, expect: Expect, ttl_s: float | None) -> None:
        """See `EngineLike.hint`; does not wait."""
        self.engine.hint(sequence_id, expect, ttl_s)

    def num_waiting(self) -> int:
        """Generations in the queue."""
        with self._lock:
            return max(len(self._outstanding) - int(self._running), 0)

    def add_notice(self, message: str) -> None:
        """Something the next answer's events will say once."""
        with self._lock:
            self._notices.append(message)

    def take_notices(self) -> list[str]:
        """What was not said yet; it counts as said now."""
        with self._lock:
            notices, self._notices = self._notices, []
        return notices

    def check_usable(self) -> None:
        """Raise Closed in a fork, after `close()`, or when the engine failed."""
        if os.getpid() != self._pid:
            raise Closed(
                "this process is a fork of the one that opened the Runtime; open its own Runtime here"
            )
        if self._closed:
            raise self._why_closed()

    def submit(self, generation: Generation, prepare: Callable[[], None]) -> None:
        """Reserve a place, `prepare()`, enqueue. Raises Busy or Closed before anything was prepared."""
        self.check_usable()
        if not self._slots.acquire(blocking=False):
            raise Busy(f"{self._queue_size} requests are waiting already (queue_size); try again later")
        try:
            prepare()
            with self._lock:
                self.check_usable()
                self._outstanding.add(generation)
                self._queue.put(generation)
        except BaseException:
            self._slots.release()
            raise

    def call(self, function: Callable[[EngineLike], T]) -> T:
        """Run `function` in the engine's thread, after what is queued, and return what it returns."""
        call = _Call(function)
        with self._lock:
            self.check_usable()
            self._queue.put(call)
        return call.future.result()  # type: ignore[return-value]  # the future holds function's own result

    def close(self) -> None:
        """Stop everything, keep what was generated, free the engine, end the thread. Again: nothing."""
        if os.getpid() != self._pid:
            return  # the thread lives in the parent
        with self._lock:
            first, self._closed = not self._closed, True
            outstanding = list(self._outstanding)
            if first:
                self._queue.put(None)
        for generation in outstanding:
            generation.cancel()
        self._thread.join()
        self._loaded = None
        failure = self._failure
        while failure is not None:  # and what it was told of: their frames hold the engine
            traceback.clear_frames(failure.__traceback__)
            failure = failure.__cause__
        error, self._close_error = self._close_error, None
        if error is not None:
            raise error

    def _require_loaded(self) -> tuple[EngineLike, FrontLike]:
        loaded = self._loaded
        if loaded is None:
            raise self._why_closed()
        return loaded

    def _why_closed(self) -> Closed:
        if self._failure is None:
            return Closed("the Runtime is closed; open a new one")
        what = f"{type(self._failure).__name__}: {self._failure}".rstrip(": ")
        error = Closed(f"the engine failed ({what}); close this Runtime and open a new one")
        error.__cause__ = self._failure
        return error

    def _main(self, build: Callable[[], tuple[EngineLike, FrontLike]], ready: Future[None]) -> None:
        _let_others_first()
        try:
            self._loaded = build()
        except BaseException as error:  # noqa: BLE001  raised again by the constructor
            ready.set_exception(told_as(error))
            return
        del build  # it may hold what the engine is made of
        engine = self._loaded[0]
        ready.set_result(None)
        try:
            engine.warm_up()  # in this thread, so that opening the Runtime does not wait for it
            self._serve(engine)
        except BaseException as error:  # noqa: BLE001  told to everybody who waits or calls later
            self._fail(told_as(error))
        finally:
            try:
                engine.close()
            except BaseException as error:  # noqa: BLE001  raised again by close()
                self._close_error = error

    def _serve(self, engine: EngineLike) -> None:
        while (job := self._next_job(engine)) is not None:
            if isinstance(job, Generation):
                self._slots.release()
                self._running = True
                job.run(engine)
                self._running = False
                with self._lock:
                    self._outstanding.discard(job)
            else:
                job.run(engine)
            del job  # or the last answer would live until the next question

    def _next_job(self, engine: EngineLike) -> Generation | _Call | None:
        if engine.is_loaded:
            try:
                return self._queue.get(timeout=self._keep_alive_s)
            except Empty:
                engine.unload()
        return self._queue.get()

    def _fail(self, error: BaseException) -> None:
        """Nobody serves the queue any more: tell everyone in it why, and everyone who comes later."""
        with self._lock:  # nothing is queued once `_closed` is seen under it
            self._failure, self._closed = error, True
            outstanding = list(self._outstanding)
            self._outstanding.clear()
        for generation in outstanding:
            generation.fail(self._why_closed())
        while True:
            try:
                job = self._queue.get_nowait()
            except Empty:
                return
            if isinstance(job, _Call):
                job.fail(self._why_closed())
