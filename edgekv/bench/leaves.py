"""A store of random leaves, to be read and appended to as fast as it can: the store's own path, nothing beside it.

Knows the store's public calls; not what is compared with what. One layer, so that a leaf is one read.
"""

from __future__ import annotations

import contextlib
import mmap
import os
import random
import resource
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from edgekv.bench.fio import Pace
from edgekv_storage import LEAF_TOKENS, Layout, LeafRead, Store

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from edgekv_storage import Keys, LeafPlace, Transfer

SEQUENCE = b"bench-sequence-0"
_NAMESPACE = b"bench"
_EXTENT_BYTES = 4 << 20
_ARENA_BYTES = 64 << 20


@dataclass(frozen=True, slots=True)
class Leaves:
    """Where the leaves of a folder lie; `size` bytes each."""

    folder: Path
    size: int
    keys: Keys | None
    places: Sequence[LeafPlace]
    first: tuple[bytes, np.ndarray[tuple[int], np.dtype[np.int32]]]

    @property
    def files(self) -> list[Path]:
        """The segments."""
        return sorted(self.folder.glob("seg-*.kv"))

    def open(self, io: str, depth: int | None = None) -> Store:
        """The store, its leaves known."""
        store = _open(self.folder, self.size, self.keys, io, depth)
        store.lookup(SEQUENCE, [self.first[0]], self.first[1])
        return store


def _open(
    folder: Path, size: int, keys: Keys | None, io: str, depth: int | None = None, num_layers: int = 1
) -> Store:
    layout = Layout(num_layers=num_layers, leaf_bytes=size, dtype=0, fingerprint=b"bench".ljust(32, b"\0"))
    return Store.open(
        folder, layout, quota_bytes=1 << 40, free_floor_bytes=0, io=io, io_depth=depth, keys=keys
    )


def write_leaves(
    folder: Path, size: int, total: int, extent: int, keys: Keys | None, num_layers: int = 1
) -> tuple[Leaves, Pace]:
    """Appends `total` bytes of leaves in extents of `extent` bytes; the pace until all are on the drive."""
    column = num_layers * size
    per_extent = max(1, min(extent // column, 4096))
    block = memoryview(os.urandom(per_extent * column))
    rounds = max(1, total // (per_extent * column))
    ids = np.random.default_rng(0).integers(0, 50_000, rounds * per_extent * LEAF_TOKENS).astype(np.int32)
    with _open(folder, size, keys, "pread", num_layers=num_layers) as store:
        chain = store.leaf_keys(SEQUENCE, _NAMESPACE, ids)  # the runtime makes them while it computes
        places: list[LeafPlace] = []
        clock = Clock()
        for start in range(0, rounds * per_extent, per_extent):
            stop = start + per_extent
            own = ids[start * LEAF_TOKENS : stop * LEAF_TOKENS]
            parent = chain[start - 1] if start else None
            places += store.append(SEQUENCE, chain[start:stop], parent, own, [block])
        store.flush()
        pace = clock.pace(rounds * per_extent * column)
    return Leaves(folder, size, keys, places, (chain[0], ids[:LEAF_TOKENS])), pace


class Clock:
    """Wall and processor time from now on."""

    def __init__(self) -> None:
        self._cpu = _cpu_seconds()
        self._began = time.perf_counter()

    def pace(self, num_bytes: int) -> Pace:
        """Of so many bytes done since."""
        seconds = time.perf_counter() - self._began
        return Pace(num_bytes / seconds, (_cpu_seconds() - self._cpu) / seconds)


def _cpu_seconds() -> float:
    used = resource.getrusage(resource.RUSAGE_SELF)
    return used.ru_utime + used.ru_stime


class Arena:
    """Where leaves are read to: as the engine's pools are, in huge pages, and in memory before it is measured."""

    def __init__(self, num_bytes: int = _ARENA_BYTES) -> None:
        self._memory = mmap.mmap(-1, num_bytes, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
        with contextlib.suppress(AttributeError, OSError):  # a system without them
            self._memory.madvise(mmap.MADV_HUGEPAGE)
        self._memory[::4096] = bytes(num_bytes // 4096)
        self.view = memoryview(self._memory)


def read_leaves(
    store: Store, leaves: Leaves, arena: Arena, depth: int, *, seconds: float = 0.0, num_bytes: int = 0
) -> Pace:
    """Random leaves for so long, or so many bytes; always twice `depth` asked for, as a prefetch does."""
    size, view = leaves.size, arena.view
    slots = len(view) // size
    batch = max(1, min(max(depth, 16), slots // 3))
    outs = [view[i * size : (i + 1) * size] for i in range(slots)]
    draw = random.Random(depth).choices  # noqa: S311  an order, not a secret
    clock, end = Clock(), time.perf_counter() + seconds
    waiting: list[Transfer] = []
    at = count = 0
    while count * size < num_bytes or time.perf_counter() < end:
        wanted = [
            LeafRead(place, 0, 1, outs[(at + i) % slots])
            for i, place in enumerate(draw(leaves.places, k=batch))
        ]
        at, count = at + batch, count + batch
        waiting.append(store.read(wanted))
        if len(waiting) == 3:
            _take(waiting.pop(0))
    for transfer in waiting:
        _take(transfer)
    return clock.pace(count * size)


def _take(transfer: Transfer) -> None:
    transfer.wait()
    assert transfer.result == [], "a leaf of the benchmark did not arrive"
