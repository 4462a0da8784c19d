"""Sections in pieces: any of them read alone, verified alone, copied along, and never a wrong byte."""

from __future__ import annotations

import random
import struct

import numpy as np
import pytest
from patience import PATIENCE_S
from storage_fixtures import OTHER, SEQUENCE, SMOL, TINY, Model, ids_of, open_store, segments_in

from edgekv_storage import LeafFault, LeafPlace, PieceRead, Pieces, Store
from edgekv_storage.segments import record
from edgekv_storage.segments.sections import Section

pytestmark = pytest.mark.usefixtures("encryption")

NODES, KEYS = 1, 2
EACH = 37  # bytes of a leaf's keys in one layer: odd, so that nothing lies on a boundary by luck
LAYERS = TINY.num_layers


def _keys_of(layer: int, first: int, count: int, seed: int = 0) -> bytes:
    """What the low-bit keys of leaves hold: follows from layer and leaf."""
    return b"".join(
        random.Random(f"{seed} {layer} {leaf}").randbytes(EACH) for leaf in range(first, first + count)
    )


def _sections(num_leaves: int, seed: int = 0) -> dict[int, object]:
    keys = b"".join(_keys_of(layer, 0, num_leaves, seed) for layer in range(LAYERS))
    nodes = b"nodes of %d " % seed * num_leaves
    return {KEYS: Pieces.of_leaves(keys, LAYERS, num_leaves, 8), NODES: Pieces(nodes, len(nodes))}


def _read(store: Store, place: LeafPlace, kind: int, first: int, count: int) -> bytes:
    cut = store.section_cut(place, kind)
    out = memoryview(bytearray(cut.size(first, count)))
    transfer = store.read_pieces([PieceRead(place, kind, first, count, out)])
    assert transfer.wait(PATIENCE_S)
    assert transfer.result == []
    return bytes(out)


def _piece_offset(store: Store, place: LeafPlace, kind: int, piece: int) -> int:
    """Where a piece begins in its segment's file."""
    spot = store._readers.spot(place)
    section = spot.tables.section(kind)
    return spot.known.entry.offset + section.offset + section.sealed_start(piece)


def _flip(path, at: int) -> None:
    data = bytearray(path.read_bytes())
    data[at] ^= 16
    path.write_bytes(data)


@pytest.mark.usefixtures("io")
@pytest.mark.parametrize("num_leaves", [1, 8, 19])
def test_any_run_of_pieces_comes_back(data_dir, num_leaves):
    """Guards offsets, sizes and numbers of pieces: the shorter last one of each run, runs across layers."""
    model = Model(TINY)
    whole = b"".join(_keys_of(layer, 0, num_leaves) for layer in range(LAYERS))
    with open_store(data_dir) as store:
        (place, *_) = model.append(store, num_leaves, sections=_sections(num_leaves))
        assert _read(store, place, KEYS, 0, 1) == whole[: min(8, num_leaves) * EACH]
    with open_store(data_dir) as store:
        places = model.find(store)
        assert model.read(store, places) == (LAYERS * num_leaves, 0)
        cut = store.section_cut(places[0], KEYS)
        per_run = -(-num_leaves // 8)
        assert (cut.num_runs, cut.pieces_per_run, cut.num_bytes) == (LAYERS, per_run, len(whole))
        for layer in range(LAYERS):
            for piece in range(per_run):
                leaves = range(piece * 8, min(num_leaves, piece * 8 + 8))
                data = _read(store, places[-1], KEYS, layer * per_run + piece, 1)
                assert data == _keys_of(layer, leaves.start, len(leaves))
        for first in range(cut.num_pieces):
            for count in range(1, cut.num_pieces - first + 1):
                start, stop = cut.start(first), cut.start(first + count)
                assert _read(store, places[0], KEYS, first, count) == whole[start:stop]
        assert _read(store, places[0], NODES, 0, 1) == b"nodes of 0 " * num_leaves
        assert store.read_section(places[0], KEYS) == whole
        assert store.check() == []


def test_neighbours_are_one_read(data_dir):
    """Guards the number of reads: a piece of each layer, or every piece of a record, must not be one read each."""
    model = Model(TINY)
    with open_store(data_dir) as store:
        (place, *_) = model.append(store, 19, sections=_sections(19))
        store.flush()
        cut = store.section_cut(place, KEYS)
        for pieces in ([0, 1, 2, 3, 4, 5, 6, 7, 8], [1, 4, 7]):
            before = store.stats().reads
            outs = [memoryview(bytearray(cut.size(piece))) for piece in pieces]
            requests = [
                PieceRead(place, KEYS, piece, 1, out) for piece, out in zip(pieces, outs, strict=True)
            ]
            transfer = store.read_pieces(requests)
            assert transfer.wait(PATIENCE_S)
            assert transfer.result == []
            assert store.stats().reads == before + 1
            for piece, out in zip(pieces, outs, strict=True):
                first = piece % 3 * 8
                assert out == _keys_of(piece // 3, first, min(8, 19 - first))


def test_long_sections_are_cut_and_still_whole(data_dir):
    """Guards sections over 1 MiB, which are read in several jobs that each open a part of the pieces."""
    model = Model(TINY)
    data = random.Random(1).randbytes(3 << 20)
    with open_store(data_dir) as store:
        (place,) = model.append(store, 1, sections={KEYS: Pieces(data, 70_001, 3)})
        store.flush()
        before = store.stats().reads
        assert store.read_section(place, KEYS) == data
        assert store.stats().reads == before + 4
        cut = store.section_cut(place, KEYS)
        assert _read(store, place, KEYS, 7, 31) == data[cut.start(7) : cut.start(38)]


def test_a_damaged_piece_is_reported_and_costs_nothing_else(data_dir):
    """Guards the tags: the damaged piece is named, its neighbours and every leaf of the record stay good."""
    model = Model(TINY)
    with open_store(data_dir) as store:
        (place, *_) = model.append(store, 19, sections=_sections(19))
        model.append(store, 2, sections=_sections(2, seed=1))
        offsets = [_piece_offset(store, place, KEYS, 4), _piece_offset(store, place, KEYS, 7) - 1]
    (path,) = segments_in(data_dir)
    for offset in offsets:  # the first byte of piece 4, the last of piece 6's tag
        _flip(path, offset)
    with open_store(data_dir) as store:
        places = model.find(store)
        cut = store.section_cut(places[0], KEYS)
        out = memoryview(bytearray(cut.size(2, 6)))
        transfer = store.read_pieces([PieceRead(places[0], KEYS, 2, 6, out)])
        assert transfer.wait(PATIENCE_S)
        damaged = "damaged on disk"
        assert transfer.result == [LeafFault(0, 2, damaged), LeafFault(0, 4, damaged)]
        for piece in (2, 3, 5, 7):
            at = cut.size(2, piece - 2)
            first = piece % 3 * 8
            good = _keys_of(piece // 3, first, min(8, 19 - first))
            assert out[at : at + len(good)] == good
        assert store.read_section(places[0], KEYS) is None
        assert [found.data is None for found in store.read_sections(places, KEYS)] == [True, False]
        assert model.read(store, places) == (LAYERS * 21, 0)
        assert store.stats().damaged_leaves == 0
        assert len(model.find(store)) == 21
        (problem,) = store.check()
        assert problem.reason == "section 2 has 2 damaged pieces of 9"


@pytest.mark.usefixtures("io")
def test_the_sections_of_all_records_come_at_once(data_dir):
    """Guards resume: one section of each record in the order of the places, None where there is none."""
    model = Model(TINY)
    with open_store(data_dir) as store:
        for seed, count in enumerate((3, 1, 2)):
            model.append(store, count, sections=_sections(count, seed))
        model.append(store, 2)
        model.append(store, 1, sections={NODES: b"in one piece"})
    with open_store(data_dir) as store:
        model.append(store, 4, sections=_sections(4, 9))
        places = model.find(store)
        before = store.stats().reads
        found = store.read_sections(places, NODES)
        assert [place for place, _ in found] == [places[i] for i in (0, 3, 4, 6, 8, 9)]
        expected = [b"nodes of %d " % seed * count for seed, count in ((0, 3), (1, 1), (2, 2))]
        assert [data for _, data in found] == [*expected, None, b"in one piece", b"nodes of 9 " * 4]
        assert store.stats().reads - before <= 5
        assert [place for place, _ in store.read_sections(places[5:7], KEYS)] == places[5:7]
        assert store.read_sections([], KEYS) == []
        assert _read(store, places[8], NODES, 0, 1) == b"in one piece"


def test_cancelled_reads_of_pieces_are_reported(data_dir):
    """Guards that cancel completes the transfer and reports every piece that did not come."""
    model = Model(TINY)
    with open_store(data_dir) as store:
        (place, *_) = model.append(store, 64, sections=_sections(64))
        cut = store.section_cut(place, KEYS)
        out = memoryview(bytearray(cut.num_bytes))
        transfers = [
            store.read_pieces([PieceRead(place, KEYS, 0, cut.num_pieces, out)], 5) for _ in range(50)
        ]
        for transfer in transfers:
            transfer.cancel()
        assert all(transfer.wait(PATIENCE_S) for transfer in transfers)
        assert all(len(transfer.result) in (0, cut.num_pieces) for transfer in transfers)
        assert store.read_section(place, KEYS) is not None


def test_misuse_of_pieces_is_refused(data_dir):
    """Guards wrong sizes and numbers, of what is written as of what is read: never other bytes."""
    model = Model(TINY)
    with open_store(data_dir) as store:
        (place, *_) = model.append(store, 9, sections=_sections(9))
        for first, count, size in (
            (0, 1, 8 * EACH - 1),
            (1, 1, 8 * EACH),
            (5, 2, 9 * EACH),
            (-1, 1, EACH),
            (0, 0, 0),
        ):
            with pytest.raises(ValueError):
                store.read_pieces([PieceRead(place, KEYS, first, count, memoryview(bytearray(size)))])
        with pytest.raises(ValueError):
            store.read_pieces([PieceRead(place, NODES, 0, 1, memoryview(bytes(99)))])
        for make in (
            lambda: Pieces(b"", 1),
            lambda: Pieces(b"abc", 0),
            lambda: Pieces(b"abc", 1, 2),
            lambda: Pieces(b"abc", 1, 0),
            lambda: Pieces(b"abc", 2, 1, is_by_leaf=True),
            lambda: Pieces.of_leaves(b"abc", 1, 2, 8),
        ):
            with pytest.raises(ValueError):
                model.append(store, 2, sections={KEYS: make()})
        transfer = store.read_pieces([PieceRead(place, 77, 0, 2, memoryview(b""))])
        assert transfer.wait(PATIENCE_S)
        assert transfer.result == [LeafFault(0, piece, "not in the store") for piece in (0, 1)]
        assert store.section_cut(place, 77) is None
        assert store.check() == []


def test_pieces_are_bound_to_their_place(data_dir, encryption):
    """Guards the numbers of pieces: two of one size and section change places, and neither opens."""
    model = Model(TINY)
    with open_store(data_dir) as store:
        (place, *_) = model.append(store, 16, sections=_sections(16))
        a, b = (_piece_offset(store, place, KEYS, piece) for piece in (0, 3))
    (path,) = segments_in(data_dir)
    data, size = bytearray(path.read_bytes()), 8 * EACH + 16
    data[a : a + size], data[b : b + size] = data[b : b + size], data[a : a + size]
    path.write_bytes(data)
    with open_store(data_dir) as store:
        (place, *_) = model.find(store)
        cut = store.section_cut(place, KEYS)
        transfer = store.read_pieces([PieceRead(place, KEYS, 0, 6, memoryview(bytearray(cut.num_bytes)))])
        assert transfer.wait(PATIENCE_S)
        exchanged = [0, 3] if encryption == "encrypted" else []
        assert [fault.leaf for fault in transfer.result] == exchanged


def test_short_records_stay_small(data_dir):
    """Guards write amplification over leaves and index: a page for each section would cost a turn's last record."""
    each, node = 3 * (6 * 64 + 8), 3 * (3 * 64 + 8)
    model = Model(SMOL)
    with open_store(data_dir, SMOL) as store:
        before, wanted = store.stats().segment_bytes_written, 0
        for count in (1, 1, 2, 3, 1):
            sections = {
                KEYS: Pieces.of_leaves(bytes(30 * count * each), 30, count, 8),
                NODES: Pieces(bytes(30 * node), 30 * node),
            }
            model.append(store, count, sections=sections)
            wanted += 30 * (count * (SMOL.leaf_bytes + each) + node)
        stats = store.stats()
        assert stats.appended_leaf_bytes + stats.appended_section_bytes == wanted
        assert stats.segment_bytes_written - before < 1.025 * wanted


def _compacted(data_dir, num_leaves: int, keep: range) -> tuple[Store, Model, list[LeafPlace]]:
    """A store whose one record was copied, all of it or the leaves in `keep`; its model, and the old places."""
    store = open_store(data_dir)
    model = Model(TINY)
    model.append(store, 2)
    model.append(store, num_leaves, sections=_sections(num_leaves), provenance=3)
    model.append(store, 60)
    store.flush()
    store._writers.seal(SEQUENCE)
    places = model.find(store)
    store._on_damage(places[2 + keep.stop :])
    for _ in range(100):
        if not store.tidy():
            break
    model.ids = model.ids[: 16 * (2 + keep.stop)]
    assert model.find(store)[2].segment != places[2].segment
    return store, model, places[2 : 2 + num_leaves]


def test_compaction_copies_sections(data_dir):
    """Guards what is costly to make again: a record that is copied whole keeps its sections, old places too."""
    store, model, old = _compacted(data_dir, 10, range(10))
    with store:
        whole = b"".join(_keys_of(layer, 0, 10) for layer in range(LAYERS))
        for place in (old[3], model.find(store)[5]):
            assert store.read_section(place, KEYS) == whole
            assert _read(store, place, KEYS, 3, 1) == _keys_of(1, 8, 2)
            assert store.read_section(place, NODES) == b"nodes of 0 " * 10
        assert store.check() == []
    with open_store(data_dir) as store:
        assert store.read_section(model.find(store)[5], KEYS) == whole


def test_compaction_copies_the_keys_of_some_leaves(data_dir):
    """Guards edited turns: the leaves that are left keep their keys; other sections spoke of all and go.

    The old place does not lead to the new section: piece 1 of a layer would be another layer's.
    """
    store, model, old = _compacted(data_dir, 10, range(7))
    with store:
        place = model.find(store)[4]
        kept = b"".join(_keys_of(layer, 0, 7) for layer in range(LAYERS))
        assert store.read_section(place, KEYS) == kept
        assert _read(store, place, KEYS, 1, 1) == _keys_of(1, 0, 7)
        assert store.read_section(place, NODES) is None
        assert store.section_cut(old[0], KEYS) is None
        transfer = store.read_pieces([PieceRead(old[0], KEYS, 0, 1, memoryview(bytearray(8 * EACH)))])
        assert transfer.wait(PATIENCE_S)
        assert transfer.result == [LeafFault(0, 0, "not in the store")]
        assert model.read(store, [*model.find(store)[:2], *old[:7]]) == (LAYERS * 9, 0)
        assert store.provenances([*old[:7], old[8], *model.find(store)[1:3]]) == [3] * 7 + [None, 0, 3]
        assert store.check() == []


@pytest.mark.parametrize("flags", [4, 2, 6])
def test_unknown_sections_are_none(data_dir, monkeypatch, flags):
    """Guards later versions: a section with flags nobody here knows is not there, and the leaves are."""
    pack = Section.pack

    def strange(section):
        entry = bytearray(pack(section))
        if section.kind == NODES:
            struct.pack_into("<I", entry, 4, flags)
        return bytes(entry)

    monkeypatch.setattr(Section, "pack", strange)
    model = Model(TINY)
    with open_store(data_dir) as store:
        model.append(store, 3, sections={**_sections(3), NODES: b"in one piece"})
    with open_store(data_dir) as store:
        places = model.find(store)
        assert store.read_section(places[0], NODES) is None
        assert _read(store, places[0], KEYS, 1, 1) == _keys_of(1, 0, 3)
        assert model.read(store, places) == (9, 0)
        assert [f"flags {flags:#x}" in problem.reason for problem in store.check()] == [True]


@pytest.mark.parametrize(
    "cut", [(0, 0, 111), (111, 0, 0), (111, 1, 111), (111, 0, 112), (1, 0, 111), (111, 0, 1 << 60)]
)
def test_an_impossible_cut_is_no_record(data_dir, monkeypatch, cut):
    """Guards tables that anybody may have written: sizes that do not fit ask for no memory, divide by no zero."""
    pack = Section.pack
    with monkeypatch.context() as patch:
        patch.setattr(
            Section,
            "pack",
            lambda s: pack(s)[:24] + (struct.pack("<IIQ", *cut) if s.kind == KEYS else pack(s)[24:]),
        )
        patch.setattr(record, "unpack_sections", lambda *_: ())
        model = Model(TINY)
        with open_store(data_dir) as store:
            model.append(store, 3, sections=_sections(3))
            model.append(store, 1)
    with open_store(data_dir) as store:
        assert model.find(store) == []
        (problem,) = store.check()
        assert problem.reason.startswith("section 2 ")


def test_provenance_and_namespaces_of_a_chain(data_dir):
    """Guards answers that are exact up to a leaf and selected from there: found by one lookup, each told apart."""
    ids = ids_of(9)
    with open_store(data_dir) as store:
        exact = store.leaf_keys(SEQUENCE, b"exact", ids[: 4 * 16])
        selected = store.leaf_keys(SEQUENCE, b"selected 4096", ids[4 * 16 :], exact[-1])
        keys = [*exact, *selected]
        assert not set(selected) & set(store.leaf_keys(SEQUENCE, b"exact", ids))
        size = LAYERS * TINY.leaf_bytes
        store.append(SEQUENCE, exact[:3], None, ids[: 3 * 16], [bytes(3 * size)])
        store.append(SEQUENCE, keys[3:5], exact[2], ids[3 * 16 : 5 * 16], [bytes(2 * size)], provenance=1)
        store.append(SEQUENCE, selected[1:], selected[0], ids[5 * 16 :], [bytes(4 * size)], provenance=2)
    with open_store(data_dir) as store:
        places = store.lookup(SEQUENCE, keys, ids)
        assert store.provenances(places) == [0, 0, 0, 1, 1, 2, 2, 2, 2]
        reads = store.stats().reads
        assert store.provenances([places[5], places[0]]) == [2, 0]
        assert store.stats().reads == reads
        assert len(store.lookup(SEQUENCE, store.leaf_keys(SEQUENCE, b"exact", ids), ids)) == 4
        assert store.lookup(SEQUENCE, store.leaf_keys(SEQUENCE, b"selected 4096", ids), ids) == []
        assert store.lookup(OTHER, keys, ids) == []
        fork = store.leaf_keys(SEQUENCE, b"selected 1024", ids[2 * 16 :], exact[1])
        assert len(store.lookup(SEQUENCE, [*exact[:2], *fork], np.array(ids))) == 2
        store.forget(SEQUENCE)
        assert store.provenances(places[:2]) == [None, None]
