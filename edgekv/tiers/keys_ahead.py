"""Low-bit keys that are on disk, read while a token is computed: part of a layer each time, until all are here.

A conversation that was opened again ranks the columns of promising nodes only, and returns to Python in every layer
to read their keys. Once all keys are in memory a token goes through all layers in one call. Their room was taken
when the nodes were read. Nothing is in flight between passes. Knows layers and columns, not why they matter.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from edgekv.tiers.abstracts import Abstracts
    from edgekv.tiers.kept_abstracts import KeptAbstracts, KeysRead
    from edgekv_storage import LeafPlace

PRIORITY = 1  # behind what the pass itself waits for
COLUMNS_AT_ONCE = 4096  # of one layer: 5 MB for heads of 3 x 64
_FEW = 64


class KeysAhead:
    """Of the sequence that decodes; engine thread only."""

    def __init__(self, kept: KeptAbstracts) -> None:
        self._kept = kept
        self._abstracts: Abstracts | None = None
        self._num_absent = 0
        self._layer = self._column = 0  # where to go on
        self._flight: tuple[int, KeysRead] | None = None

    def start(self, abstracts: Abstracts, places: list[LeafPlace]) -> None:
        """Begin reading what is absent next; a pass begins."""
        assert self._flight is None, "`land` at the end of every pass"
        if abstracts is not self._abstracts or abstracts.num_absent > self._num_absent:
            self._abstracts, self._layer, self._column = abstracts, 0, 0
        self._num_absent = abstracts.num_absent
        while self._num_absent and self._layer < abstracts.num_layers and self._flight is None:
            absent = abstracts.absent_in(self._layer)
            columns = np.flatnonzero(absent[self._column :]) + self._column
            if not len(columns):
                self._end_layer(abstracts, absent)
                continue
            columns = columns[:COLUMNS_AT_ONCE]
            self._column = int(columns[-1]) + 1
            keys = abstracts.keys_in(self._layer)
            known = places[: len(keys)]
            read = self._kept.start_keys(known, self._layer, columns, keys, PRIORITY, absent)
            self._flight = self._layer, read

    def _end_layer(self, abstracts: Abstracts, absent: np.ndarray[tuple[int], np.dtype[np.bool_]]) -> None:
        """What is left of a layer was partly there, or did not verify: a few are seen to now, many when needed."""
        left = np.flatnonzero(absent)
        if 0 < len(left) <= _FEW:
            abstracts.ensure(self._layer, left)
        self._layer, self._column = self._layer + 1, 0

    def land(self, layer: int | None = None) -> None:
        """Take in what is in flight, `layer`: if it is of that layer."""
        if self._flight is None or self._abstracts is None or layer not in (None, self._flight[0]):
            return
        (of, read), self._flight = self._flight, None
        self._abstracts.arrived(of, read.wait())
        self._num_absent = self._abstracts.num_absent
