"""Stores of tiny models whose leaves follow from their keys, so that any byte can be judged."""

from __future__ import annotations

import hashlib
import mmap
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np

from edgekv_storage import (
    LEAF_TOKENS,
    ConversationKey,
    DataDir,
    Layout,
    LeafPlace,
    LeafRead,
    Store,
    leaf_keys,
)
from edgekv_storage.crypt import NO_LEAF_SECRET

if TYPE_CHECKING:
    from pathlib import Path

NAMESPACE = b"exact"
SEQUENCE = b"conversation-one"
OTHER = b"conversation-two"
TINY = Layout(num_layers=3, leaf_bytes=1024, dtype=1, fingerprint=b"t" * 32)
PAGED = Layout(num_layers=2, leaf_bytes=4096, dtype=1, fingerprint=b"p" * 32)
ODD = Layout(num_layers=5, leaf_bytes=100, dtype=1, fingerprint=b"o" * 32)
SMOL = Layout(num_layers=30, leaf_bytes=12288, dtype=1, fingerprint=b"s" * 32)


class FixedKeys:
    """Keys that follow from the sequence: the same in every process of a test."""

    @staticmethod
    def need(sequence_id: bytes) -> ConversationKey:
        return ConversationKey(hashlib.sha256(sequence_id).digest(), hashlib.md5(sequence_id).digest())

    find = need


class Encryption:
    """What stores are opened with where a test does not say: set by the fixture `encryption`."""

    keys: FixedKeys | None = None

    @classmethod
    def secret(cls, sequence_id: bytes) -> bytes:
        return NO_LEAF_SECRET if cls.keys is None else cls.keys.need(sequence_id).leaf_secret


class Reading:
    """Which reader the stores of a test use; set by the fixture `io`."""

    io = "pread"


def ids_of(num_leaves: int, seed: int = 0) -> np.ndarray:
    """Token ids [leaves * 16]."""
    return np.random.default_rng(seed).integers(0, 50_000, num_leaves * LEAF_TOKENS).astype(np.int32)


def leaf_bytes_of(layout: Layout, key: bytes, layer: int) -> bytes:
    """What the leaf of that key holds in that layer: nothing else looks like it."""
    unit = key + layer.to_bytes(4, "little") + b"KV"
    return (unit * (layout.leaf_bytes // len(unit) + 1))[: layout.leaf_bytes]


def payload_of(layout: Layout, keys: list[bytes]) -> list[memoryview]:
    """One buffer per layer."""
    runs = (b"".join(leaf_bytes_of(layout, key, layer) for key in keys) for layer in range(layout.num_layers))
    return [memoryview(run) for run in runs]


@dataclass
class Model:
    """Appends and reads back one sequence of a layout."""

    layout: Layout
    sequence_id: bytes = SEQUENCE
    seed: int = 0
    ids: np.ndarray = field(default_factory=lambda: np.empty(0, np.int32))

    @property
    def keys(self) -> list[bytes]:
        return self.keys_of(self.ids)

    def keys_of(self, ids: np.ndarray, parent: bytes | None = None) -> list[bytes]:
        secret = Encryption.secret(self.sequence_id)
        return leaf_keys(self.layout.fingerprint, NAMESPACE, ids, parent, secret)

    def append(self, store: Store, num_leaves: int, **options) -> list[LeafPlace]:
        old = self.keys
        self.seed += 1
        new = ids_of(num_leaves, self.seed)
        ids = np.concatenate([self.ids, new])
        parent = old[-1] if old else None
        keys = self.keys_of(new, parent)
        places = store.append(self.sequence_id, keys, parent, new, payload_of(self.layout, keys), **options)
        self.ids = ids
        return places

    def find(self, store: Store) -> list[LeafPlace]:
        return store.lookup(self.sequence_id, self.keys, self.ids)

    def read(self, store: Store, places: list[LeafPlace], *, aligned: bool = True) -> tuple[int, int]:
        """Reads every leaf of every layer alone; (right, reported damaged). A wrong leaf fails the test."""
        keys, size = self.keys, self.layout.leaf_bytes
        right = damaged = 0
        for layer in range(self.layout.num_layers):
            arena = memoryview(mmap.mmap(-1, len(places) * size + 64))[0 if aligned else 7 :]
            outs = [arena[i * size : (i + 1) * size] for i in range(len(places))]
            requests = [LeafRead(place, layer, 1, out) for place, out in zip(places, outs, strict=True)]
            transfer = store.read(requests)
            assert transfer.wait(60)
            bad = {fault.request for fault in transfer.result}
            damaged += len(bad)
            for i, out in enumerate(outs):
                if i not in bad:
                    assert bytes(out) == leaf_bytes_of(self.layout, keys[i], layer), "a wrong leaf was served"
                    right += 1
        return right, damaged


def open_store(path: Path | DataDir, layout: Layout | None = TINY, **options) -> Store:
    """A store without a free-space floor, as the test machine's drive is not ours to judge."""
    usual = {"quota_bytes": 1 << 30, "free_floor_bytes": 0, "keys": Encryption.keys, "io": Reading.io}
    return Store.open(path, layout, **(usual | options))


def segments_in(path: Path) -> list[Path]:
    return sorted(path.glob("seg-*.kv"))
