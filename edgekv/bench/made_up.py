"""A conversation of made-up leaves, written to a store and read back: the store's own cost, with no model in it.

Knows the model's layout, not its values. The bytes are random, so that no drive makes them smaller.
"""

from __future__ import annotations

import mmap
from typing import TYPE_CHECKING

import numpy as np

from edgekv.cache.leaf import LEAF_TOKENS
from edgekv_kernels import NODE_LEAVES, key_bytes, node_bytes
from edgekv_storage import Layout, LeafRead, Pieces, Store

if TYPE_CHECKING:
    from pathlib import Path

    from edgekv.cache.leaf import LeafShape
    from edgekv_storage import Keys, LeafPlace, Transfer

TEXT = "made-up leaves"
SEQUENCE = b"bench-made-up-00"
_NAMESPACE = b"exact"
_DISTINCT = 64  # columns of random bytes, written again and again
_NODES, _KEYS = 1, 2  # kinds of sections


def open_store(path: Path, shape: LeafShape, *, keys: Keys | None, io: str = "auto") -> Store:
    """A store without limits for leaves of the shape, encrypted where there are keys."""
    layout = Layout(shape.num_layers, shape.leaf_bytes, 0, b"made up".ljust(32))
    return Store.open(path, layout, quota_bytes=1 << 62, free_floor_bytes=0, keys=keys, io=io)


class MadeUp:
    """One sequence that grows turn by turn; `has_index`: with the bytes that selection needs of each leaf."""

    def __init__(self, shape: LeafShape, sequence_id: bytes = SEQUENCE, *, has_index: bool = False) -> None:
        self.shape = shape
        self._has_index = has_index
        self.sequence_id = sequence_id
        self.num_tokens = 0
        self.places: list[LeafPlace] = []
        random = np.random.default_rng(1)
        size = (shape.num_layers, _DISTINCT * shape.leaf_bytes)
        self._leaves = random.integers(0, 256, size, dtype=np.uint8)
        self._keys: list[bytes] = []

    @property
    def token_ids(self) -> np.ndarray[tuple[int], np.dtype[np.int32]]:
        """Ids [num_tokens]: counted up, so that no two leaves have one key."""
        return np.arange(self.num_tokens, dtype=np.int32)

    def grow(self, store: Store, num_tokens: int) -> None:
        """Appends the leaves that so many more tokens fill, as one record or several of 64 leaves."""
        self.num_tokens += num_tokens
        stop = self.num_tokens // LEAF_TOKENS
        while (start := len(self.places)) < stop:
            self._append(store, start, min(stop, start + _DISTINCT))

    def _append(self, store: Store, start: int, stop: int) -> None:
        ids = self.token_ids[start * LEAF_TOKENS : stop * LEAF_TOKENS]
        parent = self._keys[-1] if self._keys else None
        keys = store.leaf_keys(self.sequence_id, _NAMESPACE, ids, parent)
        run = slice(0, (stop - start) * self.shape.leaf_bytes)
        payload = [memoryview(layer[run]) for layer in self._leaves]
        sections = self._index(start, stop) if self._has_index else {}
        self.places += store.append(self.sequence_id, keys, parent, ids, payload, sections=sections)
        self._keys += keys

    def _index(self, start: int, stop: int) -> dict[int, Pieces]:
        """Low-bit keys of the leaves, and abstracts of the nodes that they complete."""
        layers, heads, dim = self.shape.num_layers, self.shape.num_kv_heads, self.shape.head_dim
        size = layers * (stop - start) * key_bytes(heads, dim)
        values = self._leaves.reshape(-1).data
        keys = Pieces.of_leaves(values[:size], layers, stop - start, NODE_LEAVES)
        size = layers * (stop // NODE_LEAVES - start // NODE_LEAVES) * node_bytes(heads, dim)
        return {_KEYS: keys} | ({_NODES: Pieces(values[:size], size)} if size else {})

    def read(self, store: Store, run: int, step: int) -> int:
        """Reads `run` adjacent leaves at every `step`-th place; how many bytes. All must verify.

        Layer by layer, the next layer's reads asked for before the last one's are waited for, as decoding does.
        """
        size = self.shape.leaf_bytes
        found = store.lookup(self.sequence_id, self._keys, self.token_ids)
        assert len(found) == len(self.places), "what was written is found"
        starts = [
            at
            for at in range(0, len(found) - run + 1, step)
            if found[at].record == found[at + run - 1].record
            and found[at].segment == found[at + run - 1].segment
        ]
        layer_bytes = len(starts) * run * size
        arenas = [memoryview(mmap.mmap(-1, max(1, layer_bytes))) for _ in range(2)]
        ahead: Transfer | None = None
        for layer in range(self.shape.num_layers):
            arena = arenas[layer % 2]
            outs = (arena[at : at + run * size] for at in range(0, layer_bytes, run * size))
            requests = [LeafRead(found[at], layer, run, out) for at, out in zip(starts, outs, strict=True)]
            transfer = store.read(requests)
            if ahead is not None:
                _all_verify(ahead)
            ahead = transfer
        if ahead is not None:
            _all_verify(ahead)
        return layer_bytes * self.shape.num_layers


def _all_verify(transfer: Transfer) -> None:
    transfer.wait()
    assert transfer.result == [], "every leaf verifies"
