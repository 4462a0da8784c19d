"""Token ids read back from the records of a sequence: all branches, verified, without KV."""

from __future__ import annotations

import numpy as np
import pytest
from storage_fixtures import (
    NAMESPACE,
    OTHER,
    PAGED,
    SEQUENCE,
    TINY,
    Model,
    ids_of,
    open_store,
    payload_of,
    segments_in,
)

pytestmark = pytest.mark.usefixtures("encryption")


def _branch(store, model: Model, depth: int, seed: int) -> np.ndarray:
    """Two leaves after `depth` leaves of the model's own; returns the ids of the whole branch."""
    parent, new = model.keys[depth - 1], ids_of(2, seed)
    keys = model.keys_of(new, parent)
    store.append(model.sequence_id, keys, parent, new, payload_of(model.layout, keys))
    return np.concatenate([model.ids[: depth * 16], new])


def _paths(store, sequence_id: bytes = SEQUENCE) -> list[list[int]]:
    return [path.tolist() for path in store.stored_paths(sequence_id, NAMESPACE)]


def test_every_branch_comes_back_after_a_restart(data_dir):
    """Guards what a damaged transcript is rebuilt from: whole paths in the order they were begun, own ids only."""
    model, other, foreign = Model(TINY), Model(TINY, OTHER, seed=50), Model(PAGED, seed=90)
    with open_store(data_dir) as store:
        model.append(store, 3)
        other.append(store, 2)
        branch = _branch(store, model, 2, seed=31)
        model.append(store, 2)
        expected = [branch.tolist(), model.ids.tolist()]
        assert sorted(_paths(store)) == sorted(expected)
    with open_store(data_dir, PAGED) as store:
        foreign.append(store, 2)
        assert _paths(store) == [foreign.ids.tolist()], "other models' ids mean other words"
    with open_store(data_dir) as store:
        assert _paths(store) == expected
        assert _paths(store, OTHER) == [other.ids.tolist()]
        assert _paths(store, b"nobody" + bytes(10)) == []
        assert store.stored_paths(SEQUENCE, b"another attention mode") == []


def test_damaged_kv_leaves_the_ids_and_damaged_tables_do_not(data_dir):
    """Guards how far a path is believed: up to the record whose tables do not verify, never over the gap."""
    model = Model(TINY)
    with open_store(data_dir) as store:
        for _ in range(3):
            model.append(store, 2)
        second = store.lookup(SEQUENCE, model.keys, model.ids)[2]
        entry = store._catalog.record(second.segment, second.record).entry
    [segment] = segments_in(data_dir)
    whole = segment.read_bytes()
    tables = entry.offset + 130
    kv = entry.offset + entry.record_bytes - 4096
    for at, expected in ((kv, model.ids), (tables, model.ids[:32])):
        changed = bytearray(whole)
        changed[at] ^= 1
        segment.write_bytes(changed)
        with open_store(data_dir) as store:
            if at == kv:
                places = model.find(store)
                model.read(store, places)
                assert len(model.find(store)) < len(model.keys), "the leaf itself is dead"
            assert _paths(store) == [expected.tolist()]
