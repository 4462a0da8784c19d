"""A small data directory for campaigns: everything in it opened at once, its leaves known in advance.

A sequence has a few chains of leaves; which tokens and bytes they hold follows from the sequence's id, so that
any process can judge any byte. Knows the storage package's public API; no test framework.
"""

from __future__ import annotations

import functools
import hashlib
import mmap
import os
import shutil
import tempfile
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Self

import numpy as np
from stress_sections import judge_sections, sections_of

from edgekv_storage import (
    LEAF_TOKENS,
    DataDir,
    KeyChain,
    Layout,
    LeafPlace,
    LeafRead,
    Store,
    Transcripts,
)

if TYPE_CHECKING:
    import random

LAYOUT = Layout(num_layers=3, leaf_bytes=1024, dtype=1, fingerprint=b"t" * 32)
NAMESPACE = b"exact"
NUM_CHAINS = 3
CHAIN_LEAVES = 40
QUOTA_BYTES = 1_500_000


class Home:
    """A data directory with keys, transcripts and store open. A context manager."""

    def __init__(self, path: Path, *, io: str = "pread", quota_bytes: int = QUOTA_BYTES) -> None:
        """Raises StorageError."""
        self.path = path
        self._io, self._quota_bytes = io, quota_bytes
        with ExitStack() as opening:
            self.directory = opening.enter_context(DataDir.open(path))
            self.keys = KeyChain.open(self.directory, protection="file")
            self.transcripts = opening.enter_context(Transcripts.open(self.directory, self.keys))
            self._finish_forgetting()
            self.store = self._open_store()
            opening.callback(self.store.close)
            self._open = opening.pop_all()

    def _open_store(self) -> Store:
        return Store.open(
            self.directory,
            LAYOUT,
            quota_bytes=self._quota_bytes,
            free_floor_bytes=0,
            io=self._io,
            keys=self.keys,
        )

    def _finish_forgetting(self) -> None:
        """As the program does before it asks the store for anything: a forget that was cut off is ended."""
        for sequence_id in self.keys.destroyed():
            with self._open_store() as store:
                store.forget(sequence_id)
            self.transcripts.delete_sequence(sequence_id)
            self.keys.finish(sequence_id)

    def reopen_store(self) -> None:
        """Closes the store and opens it again."""
        self.store.close()
        self.store = self._open_store()

    def spoil(self, rng: random.Random) -> None:
        """Marks most leaves of a sealed segment as damaged, so that there is something to compact."""
        catalog = self.store._catalog
        with catalog.lock:
            sealed = [s for s in catalog.segments.values() if s.is_sealed and s.num_records]
        if not sealed:
            return
        segment = rng.choice(sealed)
        self.store._load(segment.header.sequence_id)
        with catalog.lock:
            rows = catalog.rows_of(segment) or []
        keep = rng.choice((0, 1, 3))
        leaves = [LeafPlace(row.segment, row.number, i) for row in rows for i in range(len(row.keys))]
        self.store._on_damage(leaves[keep:])

    def notices(self) -> list[str]:
        """What the user would be told."""
        return [*self.keys.notices, *self.transcripts.notices, *self.store.take_notices()]

    def close(self) -> None:
        """Closes all of it."""
        self._open.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


@dataclass(frozen=True)
class Chain:
    """Token ids and chain keys of one possible course of a sequence."""

    ids: np.ndarray  # [leaves * 16], int32
    keys: list[bytes]


@functools.lru_cache(maxsize=4096)
def chain_ids(sequence_id: bytes, number: int) -> np.ndarray:
    """Chains of a sequence share their first 8 leaves, as branches of a conversation do."""
    shared = _random_ids(sequence_id + b"shared", 8)
    return np.concatenate([shared, _random_ids(sequence_id + bytes([number]), CHAIN_LEAVES - 8)])


def _random_ids(name: bytes, num_leaves: int) -> np.ndarray:
    seed = int.from_bytes(hashlib.blake2b(name, digest_size=8).digest(), "little")
    return np.random.default_rng(seed).integers(0, 50_000, num_leaves * LEAF_TOKENS).astype(np.int32)


def chain_of(home: Home, sequence_id: bytes, number: int) -> Chain:
    """Needs the sequence's key, so it makes one."""
    ids = chain_ids(sequence_id, number)
    return Chain(ids, home.store.leaf_keys(sequence_id, NAMESPACE, ids))


def leaf_content(ids: np.ndarray, leaf: int, layer: int) -> bytes:
    """What leaf `leaf` of a chain holds in a layer: follows from its tokens and all before them."""
    unit = hashlib.blake2b(ids[: (leaf + 1) * LEAF_TOKENS].tobytes(), digest_size=60).digest()
    return ((unit + layer.to_bytes(4, "little")) * (LAYOUT.leaf_bytes // 64 + 1))[: LAYOUT.leaf_bytes]


def append(home: Home, sequence_id: bytes, chain: Chain, start: int, stop: int) -> None:
    """Appends leaves start..stop of a chain."""
    layers = range(LAYOUT.num_layers)
    payload = [
        memoryview(b"".join(leaf_content(chain.ids, leaf, layer) for leaf in range(start, stop)))
        for layer in layers
    ]
    ids = chain.ids[start * LEAF_TOKENS : stop * LEAF_TOKENS]
    parent = chain.keys[start - 1] if start else None
    sections = sections_of(chain.keys[start:stop], LAYOUT.num_layers)
    home.store.append(sequence_id, chain.keys[start:stop], parent, ids, payload, sections=sections)


@dataclass
class Served:
    """Leaves that a look at a sequence found: good, reported as damaged, and wrong ones (never).

    Sections count as damaged or wrong too.
    """

    good: int = 0
    damaged: int = 0
    wrong: int = 0


def read_all(home: Home, sequence_id: bytes) -> Served:
    """Looks up and reads every leaf of every chain of a sequence, in runs, and compares each byte."""
    served = Served()
    for number in range(NUM_CHAINS):
        chain = chain_of(home, sequence_id, number)
        places = home.store.lookup(sequence_id, chain.keys, chain.ids)
        if places:
            _read_chain(home, chain, places, served)
    return served


def _runs(places: list[LeafPlace]) -> list[tuple[int, int]]:
    starts = [i for i, place in enumerate(places) if i == 0 or not places[i - 1].precedes(place)]
    return list(zip(starts, [*starts[1:], len(places)], strict=True))


def _read_chain(home: Home, chain: Chain, places: list[LeafPlace], served: Served) -> None:
    size, layers, runs = LAYOUT.leaf_bytes, LAYOUT.num_layers, _runs(places)
    arena = memoryview(mmap.mmap(-1, layers * len(places) * size))
    at = [(layer, a, b) for layer in range(layers) for a, b in runs]
    outs = [arena[(layer * len(places) + a) * size :][: (b - a) * size] for layer, a, b in at]
    requests = [LeafRead(places[a], layer, b - a, out) for (layer, a, b), out in zip(at, outs, strict=True)]
    transfer = home.store.read(requests)
    assert transfer.wait(60), "a read hangs"
    bad = {(fault.request, fault.leaf) for fault in transfer.result}
    served.damaged += len(bad)
    for i, (layer, a, b) in enumerate(at):
        for leaf in range(a, b):
            if (i, leaf - a) in bad:
                continue
            is_good = outs[i][(leaf - a) * size :][:size] == leaf_content(chain.ids, leaf, layer)
            served.good += is_good
            served.wrong += not is_good
    wrong, missing = judge_sections(home.store, places, chain.keys[: len(places)], layers)
    served.wrong += wrong
    served.damaged += missing


def memory_directory(room_bytes: int = 1 << 29) -> Path:
    """A new temporary directory, in memory where the machine has such a place with that much room."""
    shared = Path("/dev/shm")
    is_usable = os.access(shared, os.W_OK) and shutil.disk_usage(shared).free > room_bytes
    return Path(tempfile.mkdtemp(prefix="edgekv-stress-", dir=shared if is_usable else None))
