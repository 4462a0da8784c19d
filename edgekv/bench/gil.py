"""What another Python thread loses while something runs: its pace beside it, over its pace alone.

Knows threads; not what runs. Alone and beside take turns, since a shared machine changes from second to second.
"""

from __future__ import annotations

import statistics
import threading
import time
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable

    from edgekv.bench.fio import Pace

_ALONE_SECONDS = 0.2


def pace_kept(work: Callable[[], Pace], rounds: int) -> tuple[list[float], list[float]]:
    """(share of its pace the other thread kept, bytes per second of the work beside it), one each a round."""
    kept, rates = [], []
    before = _pace(lambda: time.sleep(_ALONE_SECONDS))
    for _ in range(rounds):
        paces: list[Pace] = []
        beside = _pace(lambda: paces.append(work()))  # noqa: B023  called at once
        after = _pace(lambda: time.sleep(_ALONE_SECONDS))
        kept.append(beside / statistics.mean((before, after)))
        rates.append(paces[0].bytes_per_s)
        before = after
    return kept, rates


def _pace(run: Callable[[], object]) -> float:
    """Turns a second of a thread that does nothing but Python while `run` runs."""
    turns, stop = 0, threading.Event()

    def turn() -> None:
        nonlocal turns
        while not stop.is_set():
            for _ in range(1000):
                pass
            turns += 1

    thread = threading.Thread(target=turn, name="edgekv-bench-pace")
    thread.start()
    began = time.perf_counter()
    try:
        run()
    finally:
        seconds = time.perf_counter() - began
        stop.set()
        thread.join()
    return turns / seconds
