"""Promoted leaves by themselves, over a disk that always delivers: what is counted, and what gives way."""

from types import SimpleNamespace

import numpy as np
import pytest

from edgekv.cache.directory import ABSENT, Directory
from edgekv.tiers.promoted import PromotedLeaves


@pytest.fixture
def sequence():
    """Six columns of one layer: the first on the device, the others on disk only."""
    directory = Directory(1)
    directory.grow(6)
    directory.put_device(np.array([0]), np.array([[3]], np.int32))
    return SimpleNamespace(directory=directory)


@pytest.fixture
def promoted():
    def tier(num_slots):
        free = iter(range(num_slots))
        return SimpleNamespace(
            slots=SimpleNamespace(num_slots=num_slots),
            first_slot=0,
            take=lambda n: np.array([next(free) for _ in range(n)], np.int32),
            give=lambda slots: None,
        )

    arrived = SimpleNamespace(wait=lambda: np.empty(0, np.intp))
    disk = SimpleNamespace(read=lambda *_, **__: arrived)
    lane = SimpleNamespace(computation_waits=lambda: None)
    return PromotedLeaves(SimpleNamespace(in_place=True, host=tier(8), device=tier(8), disk=disk, lane=lane))


def step(promoted, sequence, columns, *, by_layer=False):
    """One pass over one layer that attends to `columns`, asked layer by layer or as a whole."""
    promoted.begin_pass(sequence)
    columns = np.array(columns, np.int32)
    away = columns[promoted.where[0, columns] == ABSENT]
    if by_layer or len(away):
        promoted.touch(0, columns)
    if len(away):
        promoted.bring(0, away)
    if not by_layer:
        promoted.touch_all(columns[None], np.ones((1, len(columns)), np.bool_))


@pytest.mark.parametrize("by_layer", [False, True])
def test_what_was_kept_for_later_steps_is_told(promoted, sequence, by_layer):
    """Guards what an answer says of prefetching: a leaf of the step that brought it is not foretold, one that
    several steps use was useful once, and what an earlier answer brought is not this one's."""
    promoted.open(sequence, 5)
    for columns in ([0, 1, 2], [0, 1, 3], [1, 3]):
        step(promoted, sequence, columns, by_layer=by_layer)
    use = promoted.take_use()
    assert (use.num_missed, use.num_useful, use.num_found) == (3, 2, 3)
    assert (use.precision, use.recall) == (2 / 3, 3 / 6)
    step(promoted, sequence, [1, 2], by_layer=by_layer)
    use = promoted.take_use()
    assert (use.precision, use.recall) == (None, 1.0)
    assert promoted.take_use().recall is None


def test_leaves_that_gave_way_are_looked_for(promoted, sequence):
    """Guards passes in which all seemed to be in memory: a leaf that gave way since would be read at slot -1."""
    promoted.open(sequence, 5)
    step(promoted, sequence, [1, 2, 3, 4, 5])
    sequence.directory.put_host(np.array([5]), np.array([[7]], np.int32))
    promoted.begin_pass(sequence)
    assert not promoted.is_partial
    promoted.touch(0, np.array([1, 2, 3], np.int32))
    promoted.shrink(3)
    assert (promoted.where[0, [1, 2, 3]] != ABSENT).all()
    assert promoted.where[0, 4] == ABSENT
    assert promoted.is_partial


def test_nothing_that_moved_changes_no_version(sequence):
    """Guards the tables of slots, made anew whenever it changes: an empty move did so before every token."""
    directory = sequence.directory
    before, none = directory.version, np.empty(0, np.intp)
    directory.put_host(none, np.empty((1, 0), np.int32))
    directory.put_device(none, np.empty((1, 0), np.int32))
    assert directory.version == before
    assert (directory.num_away(in_place=True), directory.num_away(in_place=False)) == (5, 5)
    directory.put_host(np.array([4]), np.array([[0]], np.int32))
    assert (directory.num_away(in_place=True), directory.num_away(in_place=False)) == (4, 5)
