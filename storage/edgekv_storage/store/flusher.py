"""Group commit: one fdatasync per 64 MiB or two seconds of appends, in a thread of its own; tidying when idle.

Knows when; not what is flushed or tidied nor how.
"""

from __future__ import annotations

import contextlib
import logging
import threading
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable

FLUSH_BYTES = 64 << 20
FLUSH_SECONDS = 2.0
_log = logging.getLogger(__name__)


class Flusher:
    """Calls `flush` soon after `wrote`, `tidy` while nothing is written; the thread starts with the first write.

    Times are counted by the monotonic clock: the wall clock may jump.
    """

    def __init__(
        self, flush: Callable[[], bool], tidy: Callable[[], bool], *, is_threaded: bool = True
    ) -> None:
        """`flush` tells whether it could; `is_threaded=False`: nothing by itself, for simulations."""
        self._flush = flush
        self._tidy = tidy
        self._is_threaded = is_threaded
        self._bytes = 0
        self._is_closed = False
        self._changed = threading.Condition()
        self._thread: threading.Thread | None = None

    def wrote(self, num_bytes: int) -> None:
        """Counts bytes that are not on the drive yet."""
        with self._changed:
            was_clean = self._bytes == 0
            self._bytes += num_bytes
            if self._is_threaded and self._thread is None and not self._is_closed:
                thread = threading.Thread(target=self._run, name="edgekv-flush", daemon=True)
                with contextlib.suppress(
                    RuntimeError
                ):  # the system's limit on threads: the next append tries again
                    thread.start()
                    self._thread = thread
            if (
                was_clean or self._bytes >= FLUSH_BYTES
            ):  # waking it at each append costs more than many an append
                self._changed.notify()

    def close(self) -> None:
        """Stops the thread; what was written last is the caller's to flush."""
        with self._changed:
            self._is_closed = True
            self._changed.notify()
        if self._thread is not None and self._thread is not threading.current_thread():
            self._thread.join()

    def _run(self) -> None:
        is_tidy = False
        while True:
            with self._changed:
                if is_tidy:
                    self._changed.wait_for(self._is_wanted)
                is_idle = not self._changed.wait_for(self._is_full, FLUSH_SECONDS) and self._bytes == 0
                if self._is_closed:
                    return
                pending, self._bytes = self._bytes, 0
            try:
                if not is_idle:
                    if not self._flush():
                        self._again(pending)
                    is_tidy = False
                else:
                    is_tidy = not self._tidy_up()
            except Exception:  # noqa: BLE001  the thread's edge: the next append must still be flushed
                _log.exception("flushing the store failed")
                is_tidy = True

    def _again(self, num_bytes: int) -> None:
        """They are still to be flushed: after the usual time, not at once."""
        with self._changed:
            self._bytes += min(num_bytes, FLUSH_BYTES - 1)

    def _tidy_up(self) -> bool:
        """Steps until all is done or something is written; whether more is left."""
        while not self._is_wanted():
            if not self._tidy():
                return False
        return True

    def _is_wanted(self) -> bool:
        return self._is_closed or self._bytes > 0

    def _is_full(self) -> bool:
        return self._is_closed or self._bytes >= FLUSH_BYTES
