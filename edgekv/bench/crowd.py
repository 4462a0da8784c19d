"""Many conversations that share a disk limit too small for them: what eviction and compaction cost in writes.

Made-up leaves in the model's real layout, through the store alone; branches, damage, re-opened old
conversations and idle moments come from one seed. What was given up and asked for again is computed again:
its leaves are new.
"""

from __future__ import annotations

import random
from typing import TYPE_CHECKING

import numpy as np

from edgekv.cache.leaf import LEAF_TOKENS
from edgekv_storage import DiskFull, Layout, MemoryKeys, QuotaExceeded, Store

if TYPE_CHECKING:
    from pathlib import Path

    from edgekv.cache.leaf import LeafShape
    from edgekv_storage import StoreStats

TEXT = "made-up leaves, limit half of what is written"
QUOTA_COLUMNS = 1456  # 512 MiB of the small bundled model
_CONVERSATIONS = 24
_EXTENT_LEAVES = 16
_NAMESPACE = b"exact"


class _Chat:
    """Token ids of a conversation's branches; the last one is where it goes on."""

    def __init__(self, number: int) -> None:
        self.sequence_id = number.to_bytes(16, "little")
        self.branches: list[np.ndarray[tuple[int], np.dtype[np.int32]]] = [np.empty(0, np.int32)]


class Crowd:
    """Takes turns in a store until twice its limit was written."""

    def __init__(self, folder: Path, shape: LeafShape, seed: int = 4) -> None:
        self._random = random.Random(seed)  # noqa: S311  the same in every run
        self._layout = Layout(shape.num_layers, shape.leaf_bytes, 0, b"made up".ljust(32))
        self._folder = folder
        self.quota_bytes = QUOTA_COLUMNS * shape.column_bytes
        values = np.random.default_rng(seed)
        size = (shape.num_layers, _EXTENT_LEAVES * shape.leaf_bytes)
        self._leaves = values.integers(0, 256, size, dtype=np.uint8)
        self._chats = [_Chat(number) for number in range(_CONVERSATIONS)]
        self.peak_bytes = 0

    def run(self) -> StoreStats:
        """Figures of the store after it was closed."""
        store = Store.open(
            self._folder, self._layout, quota_bytes=self.quota_bytes, free_floor_bytes=0, keys=MemoryKeys()
        )
        with store:
            turn = 0
            while store.stats().appended_leaf_bytes < 2 * self.quota_bytes:
                self._turn(store, turn)
                turn += 1
                if turn % 5 == 0:
                    while store.tidy():
                        pass
        return store.stats()

    def _turn(self, store: Store, turn: int) -> None:
        rng = self._random
        rank = min(_CONVERSATIONS - 1, int(rng.paretovariate(0.8)) - 1)
        chat = self._chats[(rank + turn // 40) % _CONVERSATIONS]  # interests move on, old ones come back
        ids = rng.choice(chat.branches) if rng.random() < 0.15 else chat.branches[-1]
        if rng.random() < 0.15:  # an earlier turn was edited
            ids = ids[: len(ids) * rng.randrange(1, 4) // 4 // LEAF_TOKENS * LEAF_TOKENS]
        new = np.array([rng.randrange(50_000) for _ in range(LEAF_TOKENS * rng.randrange(3, 40))], np.int32)
        ids = np.concatenate([ids, new])
        chat.branches = [*chat.branches[-3:], ids]
        keys = store.leaf_keys(chat.sequence_id, _NAMESPACE, ids)
        start = len(store.lookup(chat.sequence_id, keys, ids))
        if rng.random() < 0.3:  # a leaf was damaged: everything from it on is computed and written again
            start = rng.randrange(start + 1)
        for at in range(start, len(keys), _EXTENT_LEAVES):
            self._append(store, chat, keys, ids, range(at, min(len(keys), at + _EXTENT_LEAVES)))
        store.flush()

    def _append(
        self,
        store: Store,
        chat: _Chat,
        keys: list[bytes],
        ids: np.ndarray[tuple[int], np.dtype[np.int32]],
        leaves: range,
    ) -> None:
        run = slice(0, len(leaves) * self._layout.leaf_bytes)
        payload = [memoryview(layer[run]) for layer in self._leaves]
        extent = (
            chat.sequence_id,
            keys[leaves.start : leaves.stop],
            keys[leaves.start - 1] if leaves.start else None,
            ids[leaves.start * LEAF_TOKENS : leaves.stop * LEAF_TOKENS],
            payload,
        )
        try:
            store.append(*extent)
        except (QuotaExceeded, DiskFull):
            needed = sum(len(layer) for layer in payload)
            if not store.make_room(needed, keep={chat.sequence_id}):
                raise
            store.append(*extent)
        if len(leaves) < _EXTENT_LEAVES:  # a turn's last: look at the disk now and then
            self._observe()

    def _observe(self) -> None:
        files = sum(file.stat().st_blocks * 512 for file in self._folder.glob("seg-*.kv"))
        self.peak_bytes = max(self.peak_bytes, files)
