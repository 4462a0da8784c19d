"""The list of what moved between the tiers."""

import pytest

from edgekv.cache import moves
from edgekv.cache.moves import JOINED_S, MOST_OF_A_KIND, MoveLog

A, B = b"a", b"b"


@pytest.fixture
def clock(monkeypatch):
    """A clock that a test sets: `clock[0]`."""
    now = [1000.0]
    monkeypatch.setattr(moves.time, "time", lambda: now[0])
    return now


def told(log):
    return [(id_, move.kind, move.num_tokens, move.num_moves, move.seconds) for id_, move in log.latest()]


def test_what_goes_on_is_one_line(clock):
    """Guards the list against an answer under selection: a line for each 16 tokens, two kinds in turns."""
    log = MoveLog()
    for _ in range(100):
        clock[0] += 3
        log.note(A, "demoted", 1, "device")
        log.note(A, "dropped", 2, "host")
        log.note(B, "dropped", 1, "host")
    log.note(A, "demoted", 0, "nothing moved")
    assert told(log) == [
        (A, "demoted", 1600, 100, 297.0),
        (A, "dropped", 3200, 100, 297.0),
        (B, "dropped", 1600, 100, 297.0),
    ]


def test_only_what_belongs_together_is_put_together(clock):
    """Guards sums that would be of nothing: another sequence, another reason, or long after."""
    log = MoveLog()
    for sequence, why, pause in (
        (A, "device", 0),
        (B, "device", 1),
        (A, "unloaded", 1),
        (A, "device", JOINED_S),
    ):
        clock[0] += pause
        log.note(sequence, "demoted", 1, why)
    assert [row[3] for row in told(log)] == [1, 1, 1, 1]
    clock[0] -= 3600  # the clock was set back
    log.note(A, "demoted", 1, "device")
    assert told(log)[0] == (A, "demoted", 16, 1, 0.0)


def test_what_was_evicted_outlives_what_was_demoted_since(clock):
    """Guards what a person asks for: a loss was pushed out by 200 copies that cost nobody anything."""
    log = MoveLog()
    log.note(A, "evicted", 4, "no tier below has room for it")
    for number in range(3 * MOST_OF_A_KIND):
        clock[0] += 1
        log.note(number.to_bytes(2, "big"), "demoted", 1, "device")
    rows = told(log)
    assert rows[0] == (A, "evicted", 64, 1, 0.0)
    assert len(rows) == 1 + MOST_OF_A_KIND
    assert rows[-1][0] == (3 * MOST_OF_A_KIND - 1).to_bytes(2, "big")
