"""One simulated run of a store on a FaultyDisk: random work, the power goes off, and what must be true then.

`run(seed)` reproduces everything that `test_storage_powerloss` and the long campaigns find.
"""

from __future__ import annotations

import contextlib
import errno
import random
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from storage_fixtures import NAMESPACE, FixedKeys, ids_of, leaf_bytes_of, payload_of

from edgekv_storage import (
    DataDir,
    Layout,
    LeafPlace,
    LeafRead,
    Pieces,
    Problem,
    StorageError,
    Store,
    leaf_keys,
)
from edgekv_storage.io.faulty import SHORT, Fault, FaultyDisk, PowerLoss

LAYOUT = Layout(num_layers=2, leaf_bytes=96, dtype=1, fingerprint=b"l" * 32)
PATH = Path("/simulated")
QUOTA = 300_000
NODES, KEYS = 1, 2  # kinds of sections


@dataclass
class Chat:
    """A conversation with branches; `leaves`: key -> ids and parent of everything ever appended."""

    sequence_id: bytes
    paths: list[list[bytes]] = field(default_factory=lambda: [[]])
    ids: dict[bytes, np.ndarray] = field(default_factory=dict)
    flushed: set[bytes] = field(default_factory=set)

    def append(self, store: Store, rng: random.Random, count: int) -> None:
        path = list(rng.choice(self.paths[-3:]))
        if rng.random() < 0.3:
            path = path[: rng.randrange(len(path) + 1)]
        there = len(store.lookup(self.sequence_id, path, self.ids_along(path)))
        new = np.concatenate([self.ids_along(path)[16 * there :], ids_of(count, rng.randrange(1 << 40))])
        parent = path[there - 1] if there else None
        keys = leaf_keys(LAYOUT.fingerprint, NAMESPACE, new, parent)
        for key, ids in zip(keys, new.reshape(-1, 16), strict=True):
            self.ids[key] = ids
        self.paths.append([*path[:there], *keys])
        sections = {KEYS: Pieces.of_leaves(b"".join(keys), 1, len(keys), 2), NODES: keys[0]}
        sections = {} if rng.random() < 0.3 else sections
        store.append(self.sequence_id, keys, parent, new, payload_of(LAYOUT, keys), sections=sections)

    def ids_along(self, path: list[bytes]) -> np.ndarray:
        """Token ids of the leaves of `path`."""
        return np.concatenate([np.empty(0, np.int32), *(self.ids[key] for key in path)])

    def verify(self, store: Store) -> set[bytes]:
        """Keys that are found; a leaf whose bytes are not what was appended under its key fails."""
        found: set[bytes] = set()
        for path in self.paths:
            if found.issuperset(path):
                continue
            places = store.lookup(self.sequence_id, path, self.ids_along(path))
            new = next(i for i, key in enumerate(path) if key not in found)
            places = places[new:]
            if not places:
                continue
            outs = [[memoryview(bytearray(LAYOUT.leaf_bytes)) for _ in places] for _ in range(2)]
            reads = [
                LeafRead(place, layer, 1, outs[layer][i])
                for layer in (0, 1)
                for i, place in enumerate(places)
            ]
            transfer = store.read(reads)
            assert transfer.wait(60)
            bad = {fault.request % len(places) for fault in transfer.result}
            _verify_sections(store, path, places, new)
            for i, key in enumerate(path[new : new + len(places)]):
                if i in bad:
                    break  # what follows is of no use, and is not found again
                for layer in (0, 1):
                    right = leaf_bytes_of(LAYOUT, key, layer)
                    assert bytes(outs[layer][i]) == right, "a wrong leaf was served"
                found.add(key)
        return found


def _verify_sections(store: Store, path: list[bytes], places: list[LeafPlace], first: int) -> None:
    """What sections hold follows from the keys of their record's leaves; a copy has those of its leaves."""
    for kind in (NODES, KEYS):
        for place, data in store.read_sections(places, kind):
            key = path[first + places.index(place)]
            if data is not None and kind == KEYS:
                at = place.leaf * len(key)
                assert data[at : at + len(key)] == key, "a wrong section was served"
            elif data is not None and place.leaf == 0:
                assert data == key, "a wrong section was served"


class CountingKeys(FixedKeys):
    """Keys whose seals refuse to seal two pieces under one nonce: over restarts and power losses too."""

    def __init__(self) -> None:
        self.used: set[tuple[bytes, int, int, int, int]] = set()

    def find(self, sequence_id: bytes) -> _CountingKey:
        return _CountingKey(FixedKeys.need(sequence_id), self.used)

    need = find


class _CountingKey:
    def __init__(self, key, used: set[tuple[bytes, int, int, int, int]]) -> None:
        self.key_id, self.leaf_secret, self.secret = key.key_id, key.leaf_secret, key.secret
        self._key, self._used = key, used

    def segment_seal(self, segment: int, random: int) -> _CountingSeal:
        return _CountingSeal(
            self._key.segment_seal(segment, random), (self.key_id, segment, random), self._used
        )


class _CountingSeal:
    is_encrypted = True

    def __init__(self, seal, segment, used) -> None:
        self._seal, self._segment, self._used = seal, segment, used
        self.open_into = seal.open_into

    def seal_into(self, record: int, index: int, context, plain, out) -> bytes:
        nonce = (*self._segment, record, index)
        assert nonce not in self._used, "a nonce was used twice"
        self._used.add(nonce)
        return self._seal.seal_into(record, index, context, plain, out)


def open_simulated(disk: FaultyDisk, **options) -> Store:
    options = {"quota_bytes": QUOTA, "free_floor_bytes": 0, **options}
    return Store.open(DataDir(PATH, -1, "simulated", []), LAYOUT, disk=disk, **options)


def work(store: Store, chats: list[Chat], rng: random.Random, steps: int, keys=None) -> Store:
    """Random work; what is certainly durable is noted in the chats. Returns the store, perhaps reopened."""
    for _ in range(steps):
        chat = rng.choice(chats)
        step = rng.random()
        if step < 0.55:
            try:
                chat.append(store, rng, rng.randrange(1, 9))
            except StorageError:
                for other in chats:
                    other.flushed.clear()
                store.evict(QUOTA // 2)
        elif step < 0.75:
            store.flush()
            if store.off_reason is None:
                _note(store, chats)
        elif step < 0.80:
            chat.flushed.clear()
            store.forget(chat.sequence_id)
            chat.paths = [[]]
        elif step < 0.85:
            for other in chats:
                other.flushed.clear()
            store.evict(store.live_bytes // 2)
        elif step < 0.90:
            chat.verify(store)
        elif step < 0.95:
            if rng.random() < 0.7:
                _spoil(store, chats, rng)
            for _ in range(rng.randrange(12)):
                if not store.tidy():
                    break
        else:
            disk = store._disk
            store.close()
            _note(store, chats)
            store = open_simulated(disk, keys=keys)
    return store


def _spoil(store: Store, chats: list[Chat], rng: random.Random) -> None:
    """Makes most of a segment useless, as damage would, so that compaction has something to do."""
    with store._catalog.lock:
        segments = [s for s in store._catalog.segments.values() if s.is_sealed and s.num_records]
        if not segments:
            return
        segment = rng.choice(segments)
        store._load(segment.header.sequence_id)
        for row in store._catalog.rows_of(segment) or []:
            keep = rng.choice((0, 0, 1))
            store._on_damage([LeafPlace(row.segment, row.number, i) for i in range(keep, len(row.keys))])
    for chat in chats:
        chat.flushed.clear()


def _note(store: Store, chats: list[Chat]) -> None:
    for chat in chats:
        if store._catalog.is_loaded(chat.sequence_id):
            chat.flushed |= set(store._space.outline(chat.sequence_id).depth)


def run(seed: int, *, steps: int = 25, lies: bool = False) -> int:
    """One power loss; returns how many leaves were found after it. Odd seeds are encrypted."""
    rng = random.Random(seed)
    keys = CountingKeys() if seed % 2 else None
    chats = [Chat(bytes([i]) * 16) for i in range(3)]
    disk = FaultyDisk(seed, lies_about_sync=lies, power_off_at=rng.randrange(20, 400))
    with contextlib.suppress(PowerLoss):
        work(open_simulated(disk, keys=keys), chats, rng, steps, keys)
    return _judge(disk.crash(rng.randrange(1 << 32)), chats, keys, lies=lies, before=disk)


def _judge(disk: FaultyDisk, chats: list[Chat], keys, *, lies: bool, before: FaultyDisk | None = None) -> int:
    """Opens what is left: no wrong leaf, all that was flushed, the same again after a clean close.

    A power loss in mid-compaction leaves a torn copy beside the good leaf: it is met once, and then known.
    """
    with open_simulated(disk, quota_bytes=1 << 40, keys=keys) as store:
        found = [chat.verify(store) for chat in chats]
        for chat, leaves in zip(chats, found, strict=True):
            if not chat.flushed <= leaves:
                leaves.update(chat.verify(store))
            assert lies or chat.flushed <= leaves, f"{len(chat.flushed - leaves)} flushed leaves are lost"
        problems = [p for p in store.check() if not _was_at_risk(p, before)]
        assert lies or problems == []
    with open_simulated(disk, quota_bytes=1 << 40, keys=keys) as store:
        again = [chat.verify(store) for chat in chats]  # more where an older copy of a damaged leaf was left
        assert all(map(set.issubset, found, again)), "closing and opening lost something"
    return sum(map(len, found))


def _was_at_risk(problem: Problem, before: FaultyDisk | None) -> bool:
    """Whether it is about leaves, sections, or a record's first page that had not been synced."""
    if "leaf" in problem.reason or "section" in problem.reason:
        return True
    path = PATH / problem.file
    file = None if before is None else before._names.get(path) or before._durable_names.get(path)
    page = slice(problem.offset, problem.offset + 4096)
    return file is not None and file.durable[page] != file.data[page]


def run_with_fault(seed: int, fault: Fault | None, *, steps: int) -> int:
    """The same work with failing calls, then with none: returns the calls made until then.

    Only a StorageError may come out of the store, and nothing wrong may be found, then or later.
    """
    rng = random.Random(seed)
    chats = [Chat(bytes([i]) * 16) for i in range(2)]
    disk = FaultyDisk(seed, faults=[] if fault is None else [fault])
    store: Store | None = None
    while steps > 0:
        try:
            store = open_simulated(disk)
        except StorageError:
            steps -= 1
            continue
        while steps > 0:
            steps -= 1
            try:
                store = work(store, chats, rng, 1)
            except StorageError:
                if store._is_closed:
                    break  # it was closed and could not be opened again
    calls = disk.calls
    if store is not None and not store._is_closed:
        store.close()
    disk.faults.clear()
    for chat in chats:
        chat.flushed.clear()  # a failing drive may cost leaves
    _judge(disk, chats, None, lies=False)
    _judge(disk.crash(seed), chats, None, lies=False, before=disk)
    return calls


def every_fault(calls: int) -> list[Fault]:
    """Each call failing once in each way, and each from some call on."""
    data = frozenset({"read", "write"})
    single = [
        Fault(n, n, code)
        for n in range(calls)
        for code in (errno.EIO, errno.ENOSPC, errno.EFBIG, errno.EROFS)
    ]
    single += [Fault(n, n, code, data) for n in range(calls) for code in (errno.EINTR, SHORT)]
    lasting = [Fault(n, n + 40, code) for n in range(0, calls, 5) for code in (errno.EIO, errno.ENOSPC)]
    return single + lasting
