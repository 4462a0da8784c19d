"""Abstracts of one sequence in host memory: a node for every 8 full columns, and low-bit keys of all that were
computed here or asked for since.

Counted in the ledger's host account. Arrays are reserved larger than they are used (untouched pages cost
nothing). Knows bytes and how many columns there are; neither how they are scored nor where they come from.
"""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING

import numpy as np
import torch

import edgekv_kernels as kernels
from edgekv.cache.leaf import NODE_COLUMNS
from edgekv.cache.ledger import Tier

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from numpy.typing import NDArray

    from edgekv.cache.leaf import LeafShape
    from edgekv.cache.ledger import Ledger

_FIRST_COLUMNS = 4_096
_PACKED_AT_ONCE = 512  # leaves: half a megabyte on its way


class Abstracts:
    """Those of the first `num_columns` columns, in every layer.

    `fetch(layer, columns)` brings keys that are not there yet, by `keys_in` and `arrived`.
    """

    def __init__(
        self, shape: LeafShape, ledger: Ledger, fetch: Callable[[int, NDArray[np.intp]], None]
    ) -> None:
        assert kernels.NODE_LEAVES == NODE_COLUMNS
        self.num_columns = 0
        self.num_absent = 0  # keys of (layer, column) that are not here
        self._fetch = fetch
        self._ledger = ledger
        self._shape = shape
        self._num_layers = shape.num_layers
        self._key_bytes = kernels.key_bytes(shape.num_kv_heads, shape.head_dim)
        self._node_bytes = kernels.node_bytes(shape.num_kv_heads, shape.head_dim)
        self._absent = np.zeros((0, 0), np.bool_)
        self._keys = torch.empty(0)
        self._nodes = torch.empty(0)
        self._reserve(_FIRST_COLUMNS)

    def _reserve(self, num_columns: int) -> None:
        keys = np.empty((self._num_layers, num_columns, self._key_bytes), np.uint8)
        nodes = np.empty((self._num_layers, num_columns // NODE_COLUMNS, self._node_bytes), np.uint8)
        absent = np.zeros((self._num_layers, num_columns), np.bool_)
        if self.num_columns:
            absent[:, : self.num_columns] = self._absent[:, : self.num_columns]
            keys[:, : self.num_columns] = self._keys[:, : self.num_columns].numpy()
            done = self.num_columns // NODE_COLUMNS
            nodes[:, :done] = self._nodes[:, :done].numpy()
        self._keys, self._nodes = torch.from_numpy(keys), torch.from_numpy(nodes)
        self._absent = absent

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

    @property
    def all_keys(self) -> torch.Tensor:
        """Low-bit keys uint8 `[num_layers, num_columns, key_bytes]`, rows of a layer contiguous."""
        return self._keys[:, : self.num_columns]

    @property
    def all_nodes(self) -> torch.Tensor:
        """Nodes uint8 `[num_layers, num_columns // 8, node_bytes]`, rows of a layer contiguous."""
        return self._nodes[:, : self.num_columns // NODE_COLUMNS]

    def reserve(self, num_columns: int) -> bool:
        """Take room for `num_columns` more columns in the ledger; False when the host has none."""
        total = self.num_columns + num_columns
        return self._ledger.reserve(Tier.HOST, self.bytes_of(total) - self.bytes_of(self.num_columns))

    @contextmanager
    def all_or_none(self, num_columns: int) -> Iterator[None]:
        """While columns up to `num_columns`, which are reserved, are added: if that fails they go again, as some of
        their nodes may not have been made.
        """
        first = self.num_columns
        try:
            yield
        except BaseException:
            self._ledger.release(Tier.HOST, self.bytes_of(num_columns) - self.bytes_of(self.num_columns))
            self.shorten(first)
            raise

    def can_extend(self, num_columns: int) -> bool:
        """Whether nodes up to `num_columns` columns need no keys of earlier columns that are not here."""
        if num_columns // NODE_COLUMNS == self.num_columns // NODE_COLUMNS:
            return True
        first = self.num_columns // NODE_COLUMNS * NODE_COLUMNS
        return not self._absent[:, first : self.num_columns].any()

    def extend(self, pool: torch.Tensor, slots: NDArray[np.int32]) -> None:
        """Add the columns that lie in `slots` `[num_layers, n]` of `pool`, after `reserve(n)`."""
        start, stop = self.num_columns, self.num_columns + slots.shape[1]
        self._grow(stop)
        together = max(1, _PACKED_AT_ONCE // max(1, slots.shape[1]))  # layers: of one column, in one call
        for first in range(0, self._num_layers, together):
            some = slots[first : first + together]
            packed = kernels.pack_keys(pool, torch.from_numpy(some.flatten()).to(pool.device))
            self._keys[first : first + together, start:stop] = packed.unflatten(0, some.shape)
        self.num_columns = stop
        for node in range(start // NODE_COLUMNS, stop // NODE_COLUMNS):
            self._make_node(node)

    def adopt(self, num_columns: int, nodes: dict[int, NDArray[np.uint8]]) -> None:
        """Add columns up to `num_columns` without their keys, after `reserve`.

        `nodes[n]` is node n `[num_layers, node_bytes]`. One that is missing is made of its columns' keys, which are
        fetched.
        """
        start = self.num_columns
        self._grow(num_columns)
        self.num_columns = num_columns
        self._absent[:, start:num_columns] = True
        self.num_absent += (num_columns - start) * self._num_layers
        for number in range(start // NODE_COLUMNS, num_columns // NODE_COLUMNS):
            if number in nodes:
                self._nodes[:, number] = torch.from_numpy(nodes[number].copy())
            else:
                self._make_node(number)

    def ensure(self, layer: int, columns: NDArray[np.integer]) -> None:
        """Have the keys of `columns` here."""
        if self.num_absent:
            missing = columns[self._absent[layer, columns]]
            if len(missing):
                self._fetch(layer, missing.astype(np.intp))

    def ensure_all(self) -> None:
        """Have all keys here: from the first token on every layer ranks again and again, and a pass that need not
        return to Python for keys takes a fifth of the time. They were read anyway within some 30 tokens.
        """
        for layer in range(self._num_layers):
            if not self.num_absent:
                return
            self.ensure(layer, np.arange(self.num_columns))

    def is_absent(self, layer: int, columns: NDArray[np.integer]) -> NDArray[np.bool_]:
        """Which of `columns` have no keys here."""
        absent: NDArray[np.bool_] = self._absent[layer, columns]
        return absent

    def keys_in(self, layer: int) -> NDArray[np.uint8]:
        """The memory of one layer's keys `[num_columns, key_bytes]`, to read into."""
        return self._keys[layer, : self.num_columns].numpy()

    def arrived(self, layer: int, columns: NDArray[np.intp]) -> None:
        """Keys of these were written into `keys_in`."""
        self.num_absent -= int(self._absent[layer, columns].sum())
        self._absent[layer, columns] = False

    def sections(self, columns: range) -> tuple[NDArray[np.uint8], NDArray[np.uint8]] | None:
        """Keys and nodes to be written beside these columns; None where they are not all here."""
        start, stop = columns.start, columns.stop
        if stop > self.num_columns or self._absent[:, start:stop].any():
            return None
        nodes = self._nodes[:, start // NODE_COLUMNS : stop // NODE_COLUMNS]
        return self._keys[:, start:stop].numpy(), nodes.numpy()

    def _make_node(self, number: int) -> None:
        columns = np.arange(number * NODE_COLUMNS, (number + 1) * NODE_COLUMNS)
        for layer in range(self._num_layers):
            self.ensure(layer, columns)
        keys = self._keys[:, columns[0] : columns[-1] + 1].flatten(0, 1)
        made = kernels.nodes_of_keys(keys, self._shape.num_kv_heads, self._shape.head_dim)
        self._nodes[:, number] = made

    def _grow(self, num_columns: int) -> None:
        if num_columns > self._keys.shape[1]:
            wanted = max(num_columns + NODE_COLUMNS, 2 * self._keys.shape[1])
            self._reserve(wanted // NODE_COLUMNS * NODE_COLUMNS)

    def shorten(self, num_columns: int) -> None:
        """Forget columns from `num_columns` on."""
        if num_columns < self.num_columns:
            self._ledger.release(Tier.HOST, self.bytes_of(self.num_columns) - self.bytes_of(num_columns))
            self.num_absent -= int(self._absent[:, num_columns : self.num_columns].sum())
            self._absent[:, num_columns : self.num_columns] = False
            self.num_columns = num_columns
