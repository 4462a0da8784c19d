"""Which reader a store gets. Knows the backends by name; not how they work."""

from __future__ import annotations

from typing import TYPE_CHECKING

from edgekv_storage.io.pread import NUM_THREADS, PreadReader
from edgekv_storage.io.uring import DEPTH, UringReader

if TYPE_CHECKING:
    from collections.abc import Callable

    from edgekv_storage.io.protocol import Reader

IO_CHOICES = ("auto", "uring", "pread", "buffered")


def make_reader(backend: str, depth: int | None, notify: Callable[[str], None]) -> Reader:
    """`backend` is one of IO_CHOICES but auto; `depth` reads in flight at most, None for the backend's own."""
    if backend == "uring":
        return UringReader(depth or DEPTH, notify=notify)
    return PreadReader(depth or NUM_THREADS, use_direct=backend != "buffered")
