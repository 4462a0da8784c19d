"""Garbage is looked for when nobody notices, and all of it is."""

import gc
import weakref

import pytest

from edgekv_tui.quiet import FULL_EVERY, Quiet, begin_collecting, collect_all


class Knot:
    """Something that holds itself."""

    def __init__(self):
        self.itself = self


class Clock:
    """A widget's timers, as far as they are asked for."""

    def __init__(self):
        self.calls = []

    def set_timer(self, _seconds, work):
        self.ring = work
        return self

    def stop(self):
        self.calls.append("stop")

    def reset(self):
        self.calls.append("reset")


@pytest.fixture
def collector():
    """The interpreter's collector, left as it was."""
    thresholds, enabled = gc.get_threshold(), gc.isenabled()
    gc.disable()
    yield
    gc.set_threshold(*thresholds)
    (gc.enable if enabled else gc.disable)()


def test_what_was_set_aside_is_given_back(collector):
    """Guards memory: a conversation that was closed while its widgets were set aside would stay for ever."""
    knot = weakref.ref(Knot())
    begin_collecting()
    assert gc.isenabled()
    assert gc.get_threshold()[2] == FULL_EVERY
    gc.collect()
    assert knot() is not None
    collect_all()
    assert knot() is None
    assert gc.get_freeze_count() > 0


def test_it_waits_for_whoever_writes_or_is_answered():
    """Guards keys: what takes 200 ms is not done between two of them, nor in the middle of an answer."""
    clock, done, busy = Clock(), [], [False]
    quiet = Quiet(clock, lambda: done.append(1), lambda: busy[0])
    quiet.disturb()
    quiet.ask()
    quiet.disturb()
    quiet.ask()
    assert clock.calls == ["reset", "stop"]
    busy[0] = True
    clock.ring()
    assert done == []
    busy[0] = False
    quiet.disturb()
    assert clock.calls == ["reset", "stop"]  # it has rung
    quiet.ask()
    clock.ring()
    assert done == [1]
