"""An attacker who can write to the data directory: nothing of theirs is believed, nothing of ours is shown."""

from __future__ import annotations

import errno
import json
import mmap
import random
import shutil
import struct
from collections import Counter

import pytest
import xxhash
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from patience import PATIENCE_S
from storage_fixtures import (
    OTHER,
    SEQUENCE,
    TINY,
    Encryption,
    FixedKeys,
    Model,
    ids_of,
    leaf_bytes_of,
    open_store,
    segments_in,
)

from edgekv_storage import (
    ConversationKey,
    DiskFull,
    LeafRead,
    MemoryKeys,
    Pieces,
    StorageError,
    Store,
    UnknownFormat,
    crypt,
    leaf_keys,
)
from edgekv_storage.io.disk import OsDisk

PAGE = 4096
LEAF = TINY.leaf_bytes
ABSTRACT, KEYS = 7, 8


@pytest.fixture(autouse=True)
def _encrypted(monkeypatch):
    """Every store of this file is encrypted unless it says otherwise; keys follow from the sequence."""
    monkeypatch.setattr(Encryption, "keys", FixedKeys())


def _filled(data_dir, *turns: int, sequence_id: bytes = SEQUENCE, seed: int = 0) -> Model:
    model = Model(TINY, sequence_id, seed=seed)
    with open_store(data_dir) as store:
        for count in turns:
            model.append(store, count, sections={ABSTRACT: b"abstract of the turn", KEYS: _pieces(count)})
    return model


def _pieces(num_leaves: int) -> Pieces:
    """A section in several pieces: two leaves each, of three layers."""
    return Pieces(b"keys of the turn" * 3 * num_leaves, 32, 3)


def _repaired(data: bytearray, at: int) -> None:
    """Makes the checksum of a segment or record header at `at` right again."""
    data[at + 112 : at + 120] = struct.pack("<Q", xxhash.xxh3_64_intdigest(bytes(data[at : at + 112])))


def _judge(data_dir, model: Model) -> int:
    """Opens a damaged directory; how many leaves were served, every one of them right."""
    with open_store(data_dir) as store:
        places = model.find(store)
        right, damaged = model.read(store, places)
        assert right + damaged == len(places) * TINY.num_layers
        for place in places:
            assert store.read_section(place, ABSTRACT) in (None, b"abstract of the turn")
            assert (store.read_section(place, KEYS) or b"keys of the turn")[:16] == b"keys of the turn"
    return right


@pytest.fixture(scope="module")
def original(tmp_path_factory):
    """A closed directory of three records, its model, and the offsets of the records."""
    path = tmp_path_factory.mktemp("original") / "data"
    Encryption.keys = FixedKeys()
    model = _filled(path, 2, 3, 2)
    Encryption.keys = None
    data = segments_in(path)[0].read_bytes()
    records, at = [], PAGE
    while data[at : at + 4] == b"EKVR":
        records.append(at)
        at += struct.unpack_from("<Q", data, at + 88)[0]
    assert len(records) == 3
    (path / "index.db").unlink()
    return path, model, records


@settings(max_examples=80, deadline=None, suppress_health_check=list(HealthCheck))
@given(record=st.integers(-1, 2), bit=st.integers(0, 8 * 112 - 1))
@example(record=-1, bit=191)  # a number of 64 bits, which SQLite has no room for
@example(record=-1, bit=190)
def test_a_header_changed_with_its_checksum_serves_nothing_wrong(original, copy, record, bit):
    """Guards every field of both headers against somebody who repairs the checksum after changing them.

    The file is renamed too where its header says so. Without a right tag nothing of a record may be served.
    """
    source, model, records = original
    shutil.rmtree(copy, ignore_errors=True)
    shutil.copytree(source, copy)
    path = segments_in(copy)[0]
    data = bytearray(path.read_bytes())
    at = 0 if record < 0 else records[record]
    data[at + bit // 8] ^= 1 << bit % 8
    _repaired(data, at)
    path.unlink()
    segment, number = struct.unpack_from("<QQ", data, 16)
    (copy / f"seg-{segment:016x}-{number:016x}.kv").write_bytes(data)
    served = _judge(copy, model)
    if record >= 0:  # the tag of the tables, byte 96 on, and everything it covers
        assert served <= (7 - (2, 3, 2)[record]) * TINY.num_layers


@settings(max_examples=25, deadline=None, suppress_health_check=list(HealthCheck))
@given(places=st.lists(st.integers(0, 7 * 3 - 1), min_size=2, max_size=2, unique=True))
def test_exchanged_leaves_are_both_damaged(original, copy, places):
    """Guards nonces that name the place: a leaf of the same key and record is not taken for another."""
    source, model, records = original
    shutil.rmtree(copy, ignore_errors=True)
    shutil.copytree(source, copy)
    path = segments_in(copy)[0]
    data = bytearray(path.read_bytes())
    offsets = _leaf_offsets(data, records)
    a, b = (offsets[i] for i in places)
    data[a : a + LEAF], data[b : b + LEAF] = data[b : b + LEAF], data[a : a + LEAF]
    path.write_bytes(data)
    assert _judge(copy, model) == 7 * 3 - 2


def _leaf_offsets(data: bytes, records: list[int]) -> list[int]:
    offsets = []
    for at in records:
        leaves, layers, size = struct.unpack_from("<III", data, at + 48)
        kv = struct.unpack_from("<Q", data, at + 80)[0]
        stride = -(-leaves * size // PAGE) * PAGE
        offsets += [at + kv + i * stride + j * size for i in range(layers) for j in range(leaves)]
    return offsets


def test_exchanged_records_are_not_believed(original, tmp_path):
    """Guards record numbers: two records of one size change places, their headers renumbered and repaired."""
    source, model, records = original
    copy = tmp_path / "copy"
    shutil.copytree(source, copy)
    path = segments_in(copy)[0]
    data = bytearray(path.read_bytes())
    size = struct.unpack_from("<Q", data, records[0] + 88)[0]
    assert size == struct.unpack_from("<Q", data, records[2] + 88)[0]
    a, b = records[0], records[2]
    data[a : a + size], data[b : b + size] = data[b : b + size], data[a : a + size]
    for number, at in ((0, a), (2, b)):
        struct.pack_into("<Q", data, at + 24, number)
        _repaired(data, at)
    path.write_bytes(data)
    with open_store(copy) as store:
        assert model.find(store) == []
        assert len(store.take_notices()) == 2


def test_a_record_of_another_segment_is_not_believed(data_dir):
    """Guards segment keys: a record moved into another segment of its own conversation does not open."""
    first = _filled(data_dir, 2)
    second = Model(TINY, ids=first.ids[:0], seed=90)
    with open_store(data_dir) as store:
        second.append(store, 2, sections={ABSTRACT: b"abstract of the turn"})
    a, b = segments_in(data_dir)
    source, target = a.read_bytes(), bytearray(b.read_bytes())
    size = struct.unpack_from("<Q", source, PAGE + 88)[0]
    target[PAGE : PAGE + size] = source[PAGE : PAGE + size]
    target[PAGE + 8 : PAGE + 24] = target[16:32]
    _repaired(target, PAGE)
    b.write_bytes(target)
    a.unlink()
    (data_dir / "index.db").unlink()
    with open_store(data_dir) as store:
        assert first.find(store) == second.find(store) == []


def test_a_conversation_cannot_be_given_anothers_segment(data_dir):
    """Guards the sequence id: relabelled, with the other's key id, a segment opens for neither of the two."""
    mine = _filled(data_dir, 2)
    theirs = _filled(data_dir, 2, sequence_id=OTHER, seed=50)
    a, b = segments_in(data_dir)
    data = bytearray(a.read_bytes())
    data[32:64] = b.read_bytes()[32:64]  # key id, sequence id
    _repaired(data, 0)
    a.write_bytes(data)
    (data_dir / "index.db").unlink()
    with open_store(data_dir) as store:
        assert mine.find(store) == []
        assert theirs.read(store, theirs.find(store)) == (6, 0)
    data[32:48] = b"x" * 16
    _repaired(data, 0)
    a.write_bytes(data)
    with open_store(data_dir) as store:
        assert "another key" in "".join(store.take_notices())
        assert [f.name for f in (data_dir / "quarantine").iterdir()] == [a.name]


def test_a_planted_plain_segment_is_not_believed(data_dir, tmp_path):
    """Guards against downgrade: right checksums, right names, right conversation, and no encryption."""
    ours = _filled(data_dir, 1)
    planted = Model(TINY)
    keys = ours.keys_of(ids := ours.ids)
    with open_store(tmp_path / "plain", keys=None) as store:
        planted.append(store, 9)
        store.append(SEQUENCE, keys, None, ids, [bytes(LEAF * 3)])
    for path in segments_in(tmp_path / "plain"):
        name = path.name.replace("seg-0000000000000001", "seg-0000000000000063")
        data = bytearray(path.read_bytes())
        struct.pack_into("<Q", data, 16, 0x63)
        _repaired(data, 0)
        (data_dir / name).write_bytes(data)
    with open_store(data_dir) as store:
        assert ours.read(store, ours.find(store)) == (3, 0)
        (notice,) = store.take_notices()
        assert "not encrypted" in notice
        assert len(list((data_dir / "quarantine").iterdir())) == 1


def test_without_encryption_encrypted_segments_are_kept_and_can_be_forgotten(data_dir):
    """Guards a change of mind: turned off and on again, what was encrypted is read, what was not is refused."""
    model = _filled(data_dir, 2)
    for index_is_lost in (False, True):
        if index_is_lost:
            (data_dir / "index.db").unlink()
        with open_store(data_dir, keys=None) as store:
            assert store.lookup(SEQUENCE, model.keys, model.ids) == []
            assert store.live_bytes > 0
            assert SEQUENCE in store.sequences()
            assert store.check() == []
            assert "encryption is off" in "".join(store.take_notices())
    with open_store(data_dir, keys=None) as store:
        store.append(SEQUENCE, model.keys, None, model.ids, [bytes(2 * LEAF * 3)])
        assert len(store.lookup(SEQUENCE, model.keys, model.ids)) == 2
    with open_store(data_dir) as store:
        assert model.read(store, model.find(store)) == (6, 0)
        assert "not encrypted" in "".join(store.take_notices())
    with open_store(data_dir, keys=None) as store:
        assert store.forget(SEQUENCE)
    assert segments_in(data_dir) == []


@pytest.mark.parametrize("has_index", [True, False])
def test_what_lost_its_key_goes_to_quarantine(data_dir, has_index):
    """Guards forgetting: with the key destroyed the segments are no leaves, even restored from a copy."""
    keys = MemoryKeys()
    ids = ids_of(2)
    with open_store(data_dir, keys=keys) as store:
        chain = store.leaf_keys(SEQUENCE, b"exact", ids)
        store.append(SEQUENCE, chain, None, ids, [bytes(2 * LEAF * 3)])
        assert len(store.lookup(SEQUENCE, chain, ids)) == 2
    keys.destroy(SEQUENCE)
    if not has_index:
        (data_dir / "index.db").unlink()
    with open_store(data_dir, keys=keys) as store:
        (notice,) = store.take_notices()
        assert "key is gone" in notice
        assert store.lookup(SEQUENCE, chain, ids) == []
        assert store.leaf_keys(SEQUENCE, b"exact", ids) != chain
        assert len(list((data_dir / "quarantine").iterdir())) == 1


def test_nothing_readable_reaches_the_disk(data_dir):
    """Guards privacy: neither leaves, token ids, abstracts nor testable keys are in any file, at any time."""
    model = Model(TINY)
    section = b"what it was all about " * 9
    with open_store(data_dir) as store:
        for count in (1, 5):
            model.append(store, count, sections={ABSTRACT: section, KEYS: Pieces(section * 4, 66)})
        store.flush()
        seen = [path.read_bytes() for path in data_dir.iterdir() if path.is_file()]
    seen += [path.read_bytes() for path in data_dir.iterdir() if path.is_file()]
    needles = [section[:22], *(model.ids[at : at + 16].astype("<i4").tobytes() for at in range(0, 96, 16))]
    needles += [leaf_bytes_of(TINY, key, layer)[:32] for key in model.keys for layer in range(3)]
    needles += leaf_keys(TINY.fingerprint, b"exact", model.ids)
    assert [needle for needle in needles for data in seen if needle in data] == []
    assert any(model.keys[0] in data for data in seen), "the index holds the keyed ones"


def test_secrets_are_in_no_representation(data_dir):
    """Guards logs and tracebacks: what holds a seal or a key, printed, does not contain either."""
    model = Model(TINY)
    secret = FixedKeys.need(SEQUENCE).secret
    with open_store(data_dir) as store:
        (place,) = model.append(store, 1)
        (segment,) = store._catalog.segments.values()
        known = store._catalog.record(place.segment, place.record)
        request = LeafRead(place, 0, 1, memoryview(bytearray(LEAF)))
        run = store._readers._resolve(0, request, TINY)
        shown = "".join(f"{thing!r}" for thing in (store, segment, known, run, store._keys, place))
    for data in (secret, FixedKeys.need(SEQUENCE).leaf_secret):
        assert repr(data)[2:-1] not in shown
        assert data.hex() not in shown


def test_format_1_is_refused_and_untouched(data_dir):
    """Guards what an earlier version stored: one clear line, and not a byte of it changed."""
    data_dir.mkdir(mode=0o700)
    (data_dir / "meta.json").write_text(json.dumps({"format": 1, "uuid": "an old one"}))
    (data_dir / "seg-0000000000000001-0000000000000001.kv").write_bytes(b"EDGEKV\0S\1" + bytes(9000))
    before = {path.name: path.read_bytes() for path in data_dir.iterdir()}
    with pytest.raises(UnknownFormat, match=r"earlier edgekv .*nothing was touched; move it away, or choose"):
        open_store(data_dir)
    assert {path.name: path.read_bytes() for path in data_dir.iterdir() if path.name != "LOCK"} == before


class _Nonces(Counter):
    """Every (key, nonce) that encrypted something, by what was encrypted."""

    @classmethod
    def record(cls, monkeypatch) -> _Nonces:
        used = cls()
        init, seal_into = crypt.AesGcmSeal.__init__, crypt.AesGcmSeal.seal_into
        keys: dict[int, bytes] = {}
        alive = []

        def remember(seal, key):
            init(seal, key)
            keys[id(seal)] = key
            alive.append(seal)

        def count(seal, record, index, context, plain, out):
            used[keys[id(seal)], record, index] += 1
            return seal_into(seal, record, index, context, plain, out)

        monkeypatch.setattr(crypt.AesGcmSeal, "__init__", remember)
        monkeypatch.setattr(crypt.AesGcmSeal, "seal_into", count)
        return used


class _Failing(OsDisk):
    """Fails the writes whose numbers are given, after half of the bytes, or is interrupted there."""

    def __init__(self) -> None:
        self.plan: list[BaseException] = []

    def pwritev(self, fd, buffers, offset):
        if self.plan:
            first = memoryview(buffers[0]).cast("B")
            super().pwritev(fd, [first[: len(first) // 2]], offset)
            raise self.plan.pop()
        return super().pwritev(fd, buffers, offset)


@pytest.mark.parametrize("seed", range(6))
def test_no_nonce_is_used_twice(data_dir, monkeypatch, seed):
    """Guards the cipher: one repeated (key, nonce) gives two leaves away and lets tags be forged.

    Appends, full and failing drives, an interrupt in the middle of a record, reopening, forgetting.
    """
    used = _Nonces.record(monkeypatch)
    rng, disk = random.Random(seed), _Failing()
    models = {i: Model(TINY, i, seed=seed * 100) for i in (SEQUENCE, OTHER)}
    store = open_store(data_dir, disk=disk)
    failures = 0
    for _ in range(60):
        model = models[rng.choice([SEQUENCE, OTHER])]
        step = rng.random()
        if step < 0.3:
            code = rng.choice([errno.ENOSPC, errno.EIO])
            disk.plan = [OSError(code, "planned") if rng.random() < 0.7 else KeyboardInterrupt()]
        try:
            sections = {ABSTRACT: b"x", KEYS: _pieces(5), 9: Pieces(b"z" * 9, 4)} if step < 0.5 else {}
            model.append(store, rng.randrange(1, 5), sections=sections)
        except (StorageError, KeyboardInterrupt) as error:
            failures += 1
            if not isinstance(error, DiskFull):
                store._writers.off_reason = None
                store._writers._failures.clear()
        disk.plan = []
        if step > 0.9:
            store.close()
            store = open_store(data_dir, disk=disk)
        elif step > 0.85:
            store.forget(model.sequence_id)
    for model in models.values():
        places = model.find(store)
        assert model.read(store, places) == (len(places) * 3, 0)
    assert store.check() == []
    store.close()
    assert failures > 5
    assert len(used) > 300
    assert max(used.values()) == 1


def test_a_leaf_that_does_not_open_harms_no_neighbour(data_dir):
    """Guards the tag that is put behind a leaf for opening: the next leaf's first bytes must come back."""
    model = _filled(data_dir, 8)
    path = segments_in(data_dir)[0]
    data = bytearray(path.read_bytes())
    offset = _leaf_offsets(data, [PAGE])[8 + 3]  # layer 1, leaf 3
    data[offset] ^= 1
    path.write_bytes(data)
    with open_store(data_dir) as store:
        places = model.find(store)
        out = memoryview(mmap.mmap(-1, 8 * LEAF))
        transfer = store.read([LeafRead(places[0], 1, 8, out)])
        assert transfer.wait(PATIENCE_S)
        assert [(f.leaf, f.reason) for f in transfer.result] == [(3, "damaged on disk")]
        for leaf, key in enumerate(model.keys):
            if leaf != 3:
                assert bytes(out[leaf * LEAF : (leaf + 1) * LEAF]) == leaf_bytes_of(TINY, key, 1)


def test_leaf_keys_of_a_store_are_the_conversations(data_dir):
    """Guards the seam to the runtime: keys continue from a parent, differ by conversation, follow its secret."""
    model = _filled(data_dir, 3)
    with open_store(data_dir) as store:
        assert isinstance(store, Store)
        whole = store.leaf_keys(SEQUENCE, b"exact", model.ids)
        assert whole == model.keys
        assert store.leaf_keys(SEQUENCE, b"exact", model.ids[16:], whole[0]) == whole[1:]
        assert not set(store.leaf_keys(OTHER, b"exact", model.ids)) & set(whole)


def test_memory_that_changed_under_a_read_costs_no_leaf(data_dir):
    """Guards a good leaf: two reads into the same memory made one of them look damaged, for good."""
    model = _filled(data_dir, 8)
    with open_store(data_dir) as store:
        places = model.find(store)
        out = memoryview(mmap.mmap(-1, 8 * LEAF))
        for _ in range(20):
            transfers = [store.read([LeafRead(places[0], 0, 8, out)]) for _ in range(8)]
            assert all(transfer.wait(PATIENCE_S) for transfer in transfers)
        assert store.stats().damaged_leaves == 0
        run = store._readers._resolve(0, LeafRead(places[0], 0, 8, out), TINY)
        out[:] = bytes(len(out))
        assert run.faulty() == list(range(8))
        assert all(run.read_again(leaf) for leaf in range(8))
        assert bytes(out) == b"".join(leaf_bytes_of(TINY, key, 0) for key in model.keys)


class _WrongSecret(FixedKeys):
    """The right names of keys and other secrets: a keys.db of another directory, or a wrong unwrapping."""

    @staticmethod
    def need(sequence_id):
        return ConversationKey(bytes(range(32)), FixedKeys.need(sequence_id).key_id)

    find = need


@pytest.mark.parametrize("has_index", [True, False])
def test_another_secret_opens_nothing(data_dir, has_index):
    """Guards the last line: whatever the headers say, with another secret no leaf is found and nothing breaks."""
    model = _filled(data_dir, 3, 2)
    if not has_index:
        (data_dir / "index.db").unlink()
    with open_store(data_dir, keys=_WrongSecret()) as store:
        assert model.find(store) == []
        keys = store.leaf_keys(SEQUENCE, b"exact", model.ids)
        assert not set(keys) & set(model.keys)
        store.append(SEQUENCE, keys, None, model.ids, [bytes(5 * LEAF * 3)])
        assert len(store.lookup(SEQUENCE, keys, model.ids)) == 5
