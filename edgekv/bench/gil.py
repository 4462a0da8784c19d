"""What another Python thread loses while something runs: its pace beside it, over its pace alone.

Knows threads; not what runs. Alone and beside take turns, since a shared machine changes from second to second.
Time in which the thread could run and had no processor, since other programs had them, is not counted: it says
nothing about the GIL.
"""

from __future__ import annotations

import statistics
import threading
import time
from pathlib import Path
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
    turns, stop, started = 0, threading.Event(), threading.Event()

    def turn() -> None:
        nonlocal turns
        started.set()
        while not stop.is_set():
            for _ in range(1000):
                pass
            turns += 1

    thread = threading.Thread(target=turn, name="edgekv-bench-pace")
    thread.start()
    started.wait()
    assert thread.native_id is not None, "it runs"
    before, began, waited = turns, time.perf_counter(), _seconds_without_processor(thread.native_id)
    try:
        run()
    finally:
        seconds, done = time.perf_counter() - began, turns - before
        waited = _seconds_without_processor(thread.native_id) - waited
        stop.set()
        thread.join()
    return done / max(seconds - waited, seconds / 100)


def _seconds_without_processor(thread: int) -> float:
    """Since it started; 0 where the system does not count."""
    try:
        return int(Path(f"/proc/self/task/{thread}/schedstat").read_text().split()[1]) / 1e9
    except (OSError, LookupError, ValueError):
        return 0.0
