"""Waiting for what has to come, however busy the machine is, and what this process holds.

Nobody waits longer than it takes: the limit is there so that a test that waits in vain says for what.
"""

import gc
import threading
import time
from pathlib import Path

PATIENCE_S = 60


def wait_until(condition, what="it"):
    """Return as soon as `condition()` holds."""
    end = time.monotonic() + PATIENCE_S
    while not condition():
        assert time.monotonic() < end, f"waited for {what}"
        time.sleep(0.002)


class Held:
    """The threads and descriptors there were: what earlier tests left may go at any time, nothing may come."""

    def __init__(self):
        gc.collect()
        self._threads, self._files = set(threading.enumerate()), _open_files()

    def new_threads(self):
        return set(threading.enumerate()) - self._threads

    def new_files(self):
        """Descriptors that are open now and were not, or on something else, with what they are open on."""
        gc.collect()
        return _open_files() - self._files

    def wait_until_nothing_is_new(self):
        """A thread that was told to end, or to give something back, may need a moment."""
        wait_until(lambda: not self.new_threads(), "threads to end")
        wait_until(lambda: not self.new_files(), "descriptors to be closed")


def _open_files():
    found = set()
    for link in Path("/proc/self/fd").iterdir():
        try:
            found.add((link.name, str(link.readlink())))
        except FileNotFoundError:  # the one that lists them, for instance
            continue
    return found
