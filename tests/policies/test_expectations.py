"""Who gives way: what hints mean and when they lapse, and which of its own columns a sequence gives."""

import numpy as np

from edgekv.cache.expectations import Expectations, Expected
from edgekv.policies.placement import Candidate, Placement, own_order


def test_hints_lapse_and_are_fulfilled():
    """Guards against a hint that holds for ever: a tool that never came back must not keep its place."""
    now = [100.0]
    said = Expectations(lambda: now[0])
    for name, expect, ttl in (
        (b"t", "tool", None),
        (b"u", "user", None),
        (b"d", "done", None),
        (b"l", "tool", 30),
    ):
        said.note(name, expect, ttl)
    assert [said.of(n) for n in (b"d", b"x", b"u", b"t")] == sorted(Expected)
    now[0] += 2.0
    assert [said.of(name) for name in (b"t", b"u", b"l")] == [
        Expected.UNKNOWN,
        Expected.IN_A_WHILE,
        Expected.AT_ONCE,
    ]
    now[0] += 1e6
    assert [said.of(name) for name in (b"u", b"l", b"d")] == [
        Expected.UNKNOWN,
        Expected.UNKNOWN,
        Expected.NEVER,
    ]
    said.fulfilled(b"d")
    assert said.of(b"d") is Expected.UNKNOWN


def test_placement_takes_the_done_ones_first():
    """Guards the order: hint, then time, and the active one last whatever is said of it."""
    columns = np.arange(2)
    candidates = [
        Candidate(b"active", columns, 9, is_active=True, expected=Expected.NEVER),
        Candidate(b"tool", columns, 1, is_active=False, expected=Expected.AT_ONCE),
        Candidate(b"old", columns, 2, is_active=False),
        Candidate(b"new", columns, 8, is_active=False),
        Candidate(b"done", columns, 7, is_active=False, expected=Expected.NEVER),
    ]
    order = [name for name, _ in Placement().victims(candidates, 10)]
    assert order == [b"done", b"old", b"new", b"tool", b"active"]


def test_a_sequence_gives_what_was_worth_least():
    """Guards heavy hitters: of its own columns the oldest left, whatever was attended; the latest, which were never
    weighed, go last."""
    worth = np.array([np.inf, 5.0, 1.0, 3.0, 1.0], np.float32)
    assert own_order(np.arange(7), worth).tolist() == [2, 4, 3, 1, 0, 5, 6]
    assert own_order(np.array([1, 2, 0]), worth[:0]).tolist() == [1, 2, 0]
    active = Candidate(b"active", np.array([1, 2, 4]), 9, is_active=True, worth=worth)
    idle = Candidate(b"idle", np.array([1, 2, 4]), 1, is_active=False, worth=worth)
    taken = [(name, columns.tolist()) for name, columns in Placement().victims([active, idle], 5)]
    assert taken == [(b"idle", [4, 2, 1]), (b"active", [2, 4])]
