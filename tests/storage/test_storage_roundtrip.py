"""Leaves come back as they were written, alone or in runs, in the same process or the next."""

from __future__ import annotations

import mmap
from itertools import pairwise

import numpy as np
import pytest
from patience import PATIENCE_S
from storage_fixtures import (
    ODD,
    OTHER,
    PAGED,
    SEQUENCE,
    SMOL,
    TINY,
    Model,
    leaf_bytes_of,
    open_store,
    payload_of,
)

from edgekv_storage import LeafFault, LeafRead, StorageError, StoreClosed

pytestmark = pytest.mark.usefixtures("encryption", "io")

LAYOUTS = pytest.mark.parametrize("layout", [TINY, PAGED, ODD, SMOL], ids=["tiny", "paged", "odd", "smol"])


@LAYOUTS
@pytest.mark.parametrize("io", ["pread", "buffered"])
def test_leaves_survive_a_restart(data_dir, layout, io):
    """Guards the offsets of records, layers and leaves, for leaves that fill pages and leaves that do not."""
    model = Model(layout)
    with open_store(data_dir, layout, io=io) as store:
        for count in (1, 4, 3):
            model.append(store, count)
        places = model.find(store)
        assert len(places) == 8
        assert model.read(store, places) == (8 * layout.num_layers, 0)
    with open_store(data_dir, layout, io=io) as store:
        assert model.find(store) == places
        assert model.read(store, places) == (8 * layout.num_layers, 0)
        assert model.read(store, places, aligned=False) == (8 * layout.num_layers, 0)
        assert store.check() == []


@LAYOUTS
def test_a_run_from_the_middle_of_a_record(data_dir, layout):
    """Guards the tag slice and the byte offset of a run that does not start at its record's first leaf."""
    model = Model(layout)
    with open_store(data_dir, layout) as store:
        places = model.append(store, 9)
        store.flush()
        out = memoryview(mmap.mmap(-1, 4 * layout.leaf_bytes))
        transfer = store.read([LeafRead(places[3], 1, 4, out)])
        assert transfer.wait(PATIENCE_S)
        assert transfer.result == []
        assert bytes(out) == b"".join(leaf_bytes_of(layout, key, 1) for key in model.keys[3:7])


def test_long_runs_are_cut_and_still_whole(data_dir):
    """Guards runs over 1 MiB, which are read in several pieces that each verify a part of the tags."""
    model = Model(SMOL)
    with open_store(data_dir, SMOL) as store:
        places = model.append(store, 200)
        store.flush()
        out = memoryview(mmap.mmap(-1, 200 * SMOL.leaf_bytes))
        transfer = store.read([LeafRead(places[0], 29, 200, out)])
        assert transfer.wait(PATIENCE_S)
        assert transfer.result == []
        assert bytes(out) == b"".join(leaf_bytes_of(SMOL, key, 29) for key in model.keys)
        assert store.stats().reads == 3


def test_neighbouring_leaves_are_one_read(data_dir):
    """Guards coalescing: sixteen single leaves of one layer must not cost sixteen reads."""
    model = Model(PAGED)
    with open_store(data_dir, PAGED) as store:
        places = model.append(store, 16)
        assert all(a.precedes(b) for a, b in pairwise(places))
        assert model.read(store, places) == (32, 0)
        assert store.stats().reads == 2


def test_payload_may_be_cut_anywhere(data_dir):
    """Guards hashing and padding when buffers end inside a leaf (K and V handed over apart)."""
    model = Model(ODD)
    with open_store(data_dir, ODD) as store:
        model.append(store, 2)
        other = Model(ODD, OTHER, ids=model.ids)
        whole = b"".join(payload_of(ODD, other.keys))
        cut = [memoryview(whole)[at : at + 37] for at in range(0, len(whole), 37)]
        store.append(OTHER, other.keys, None, other.ids, cut)
        assert other.read(store, other.find(store)) == (2 * ODD.num_layers, 0)
        assert store.check() == []


def test_lookup_compares_the_token_ids(data_dir):
    """Guards the rule that a key alone never serves a leaf: equal key, other text, no hit."""
    model = Model(TINY)
    with open_store(data_dir) as store:
        model.append(store, 4)
        ids = model.ids.copy()
        ids[2 * 16 + 5] += 1
        assert len(store.lookup(SEQUENCE, model.keys, ids)) == 2
        assert store.lookup(OTHER, model.keys, model.ids) == []


def test_lookup_ends_at_the_first_absent_leaf(data_dir):
    """Guards branches: two continuations of one prefix are both found, an unknown one not."""
    model = Model(TINY)
    with open_store(data_dir) as store:
        model.append(store, 3)
        branch = Model(TINY, ids=model.ids.copy(), seed=50)
        model.append(store, 2)
        branch.append(store, 2)
        other = Model(TINY, ids=model.ids[: 4 * 16].copy())
        other.ids[3 * 16] += 1
        assert [len(m.find(store)) for m in (model, branch, other)] == [5, 5, 3]
        assert model.find(store)[:3] == branch.find(store)[:3]


def test_nothing_is_found_of_another_model(data_dir):
    """Guards a conversation carried on with another model: same sequence, other layout, no leaf shared."""
    model = Model(TINY)
    with open_store(data_dir) as store:
        model.append(store, 2)
    other = Model(PAGED, ids=model.ids)
    with open_store(data_dir, PAGED) as store:
        assert store.lookup(SEQUENCE, model.keys, model.ids) == []
        assert other.find(store) == []
        assert store.live_bytes > 0
        assert store.forget(SEQUENCE)
        assert store.live_bytes == 0


def test_sections_and_provenance_come_back(data_dir):
    """Guards the typed regions in front of the KV, and that they move it by whole pages."""
    model = Model(TINY)
    sections = {7: b"abstract" * 700, 2: b"x"}
    with open_store(data_dir) as store:
        model.append(store, 2, sections=sections, provenance=3)
    with open_store(data_dir) as store:
        places = model.find(store)
        assert [store.read_section(places[1], kind) for kind in (2, 7, 9)] == [b"x", sections[7], None]
        assert model.read(store, places) == (6, 0)
        assert store.check() == []


def test_cancelled_reads_are_reported_and_harmless(data_dir):
    """Guards that cancel completes the transfer, reports what did not come, and damages no leaf's name."""
    model = Model(TINY)
    with open_store(data_dir) as store:
        places = model.append(store, 64)
        out = memoryview(mmap.mmap(-1, 64 * 1024))
        transfers = [store.read([LeafRead(places[0], 0, 64, out)]) for _ in range(50)]
        for transfer in transfers:
            transfer.cancel()
        assert all(transfer.wait(PATIENCE_S) for transfer in transfers)
        assert all(len(transfer.result) in (0, 64) for transfer in transfers)
        assert len(model.find(store)) == 64


def test_misuse_is_refused_before_anything_happens(data_dir):
    """Guards wrong sizes: a short buffer or a run past its record must raise, not read other bytes."""
    model = Model(TINY)
    with open_store(data_dir) as store:
        places = model.append(store, 2)
        out = memoryview(bytearray(1024))
        for request in (
            LeafRead(places[0], 0, 2, out),
            LeafRead(places[1], 0, 2, memoryview(bytearray(2048))),
            LeafRead(places[0], 3, 1, out),
            LeafRead(places[0], 0, 1, memoryview(bytes(1024))),
        ):
            with pytest.raises(ValueError):
                store.read([request])
        with pytest.raises(ValueError):
            store.append(SEQUENCE, [b"k" * 16], None, np.zeros(15, np.int32), [bytes(3072)])
        with pytest.raises(ValueError):
            store.append(SEQUENCE, [b"k" * 16], None, np.zeros(16, np.int32), [bytes(3071)])
        assert store.check() == []
    with pytest.raises(StoreClosed):
        model.find(store)
    with pytest.raises(ValueError), open_store(data_dir, io="telepathy"):
        pass


def test_reading_what_was_forgotten_is_a_miss(data_dir):
    """Guards places that outlive their sequence: never another sequence's bytes under a reused segment id."""
    model = Model(TINY)
    with open_store(data_dir) as store:
        places = model.append(store, 1)
        store.forget(SEQUENCE)
        Model(TINY, OTHER).append(store, 1)
        transfer = store.read([LeafRead(places[0], 0, 1, memoryview(bytearray(1024)))])
        assert transfer.wait(PATIENCE_S)
        assert transfer.result == [LeafFault(0, 0, "not in the store")]


def test_without_a_model_only_housekeeping(data_dir):
    """Guards `edgekv forget` where no model is loaded."""
    model = Model(TINY)
    with open_store(data_dir) as store:
        model.append(store, 2)
    with open_store(data_dir, None) as store:
        assert list(store.sequences()) == [SEQUENCE]
        with pytest.raises(StorageError):
            model.find(store)
        assert store.forget(SEQUENCE)
        assert not store.forget(SEQUENCE)
