"""Abstracts of one sequence in host memory: low-bit keys of every full column, a node for every 8 of them.

Counted in the ledger's host account. Arrays are reserved larger than they are used (untouched pages cost
nothing). Knows bytes and how many columns there are; not how they are scored.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import torch

import edgekv_kernels as kernels
from edgekv.cache.ledger import Tier

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from edgekv.cache.leaf import LeafShape
    from edgekv.cache.ledger import Ledger

NODE_COLUMNS = kernels.NODE_LEAVES
_FIRST_COLUMNS = 4_096


class Abstracts:
    """Those of the first `num_columns` columns, in every layer."""

    def __init__(self, shape: LeafShape, ledger: Ledger) -> None:
        self.num_columns = 0
        self._ledger = ledger
        self._shape = shape
        self._num_layers = shape.num_layers
        self._key_bytes = kernels.key_bytes(shape.num_kv_heads, shape.head_dim)
        self._node_bytes = kernels.node_bytes(shape.num_kv_heads, shape.head_dim)
        self._keys = torch.empty(0)
        self._nodes = torch.empty(0)
        self._reserve(_FIRST_COLUMNS)

    def _reserve(self, num_columns: int) -> None:
        keys = np.empty((self._num_layers, num_columns, self._key_bytes), np.uint8)
        nodes = np.empty((self._num_layers, num_columns // NODE_COLUMNS, self._node_bytes), np.uint8)
        if self.num_columns:
            keys[:, : self.num_columns] = self._keys[:, : self.num_columns].numpy()
            done = self.num_columns // NODE_COLUMNS
            nodes[:, :done] = self._nodes[:, :done].numpy()
        self._keys, self._nodes = torch.from_numpy(keys), torch.from_numpy(nodes)

    def bytes_of(self, num_columns: int) -> int:
        """Bytes that `num_columns` columns and their nodes take in the ledger."""
        return self._num_layers * (
            num_columns * self._key_bytes + num_columns // NODE_COLUMNS * self._node_bytes
        )

    def keys(self, layer: int) -> torch.Tensor:
        """Low-bit keys uint8 `[num_columns, key_bytes]` of one layer."""
        return self._keys[layer, : self.num_columns]

    def nodes(self, layer: int) -> torch.Tensor:
        """Nodes uint8 `[num_columns // 8, node_bytes]` of one layer."""
        return self._nodes[layer, : self.num_columns // NODE_COLUMNS]

    def reserve(self, num_columns: int) -> bool:
        """Take room for `num_columns` more columns in the ledger; False when the host has none."""
        total = self.num_columns + num_columns
        return self._ledger.reserve(Tier.HOST, self.bytes_of(total) - self.bytes_of(self.num_columns))

    def unreserve(self, num_columns: int) -> None:
        """Give back what was reserved up to `num_columns` columns and not used."""
        self._ledger.release(Tier.HOST, self.bytes_of(num_columns) - self.bytes_of(self.num_columns))

    def extend(self, pool: torch.Tensor, slots: NDArray[np.int32]) -> None:
        """Add the columns that lie in `slots` `[num_layers, n]` of `pool`, after `reserve(n)`."""
        start, stop = self.num_columns, self.num_columns + slots.shape[1]
        if stop > self._keys.shape[1]:
            self._reserve(max(stop + NODE_COLUMNS, 2 * self._keys.shape[1]) // NODE_COLUMNS * NODE_COLUMNS)
        for layer in range(self._num_layers):
            row = torch.from_numpy(np.ascontiguousarray(slots[layer])).to(pool.device)
            self._keys[layer, start:stop] = kernels.pack_keys(pool, row)
        self.num_columns = stop
        first_node, last_node = start // NODE_COLUMNS, stop // NODE_COLUMNS
        if last_node > first_node:
            keys = self._keys[:, first_node * NODE_COLUMNS : last_node * NODE_COLUMNS].flatten(0, 1)
            nodes = kernels.nodes_of_keys(keys, self._shape.num_kv_heads, self._shape.head_dim)
            self._nodes[:, first_node:last_node] = nodes.unflatten(0, (self._num_layers, -1))

    def shorten(self, num_columns: int) -> None:
        """Forget columns from `num_columns` on."""
        if num_columns < self.num_columns:
            self._ledger.release(Tier.HOST, self.bytes_of(self.num_columns) - self.bytes_of(num_columns))
            self.num_columns = num_columns
