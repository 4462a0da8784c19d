"""Abstracts beside the KV on disk: written with each extent, read back level by level.

At resume the nodes of all records come at once (0.6 % of the KV); low-bit keys in pieces of 8 leaves of one layer,
when a step asks for them. Knows how both are laid out in sections of a record; not when they are wanted.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from edgekv.cache.leaf import NODE_COLUMNS
from edgekv_storage import PieceRead, Pieces

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from edgekv_storage import Cut, LeafPlace, Store

    Bytes = NDArray[np.uint8]

KIND_KEYS, KIND_NODES = 1, 2
_PIECE_LEAVES = 8
_MAX_CUTS = 1 << 14  # 4 million tokens' records


@dataclass(frozen=True, slots=True)
class RecordNodes:
    """Columns `start` to `stop - 1` lie in one record, which has their keys. Of nodes that end there, `nodes[n]` is
    node n `[num_layers, node_bytes]`; some may be missing.
    """

    start: int
    stop: int
    nodes: dict[int, Bytes]


def sections_of(keys: Bytes, nodes: Bytes) -> dict[int, bytes | Pieces]:
    """Sections of an extent: its keys `[num_layers, columns, key_bytes]`, and nodes `[num_layers, n, node_bytes]`,
    those whose last column is in the extent.
    """
    num_layers, num_columns, _ = keys.shape
    found: dict[int, bytes | Pieces] = {
        KIND_KEYS: Pieces.of_leaves(keys.tobytes(), num_layers, num_columns, _PIECE_LEAVES)
    }
    if nodes.shape[1]:
        found[KIND_NODES] = nodes.tobytes()
    return found


class KeptAbstracts:
    """Reads abstracts of the sequence whose column c lies at `places[c]`."""

    def __init__(self, store: Store, num_layers: int, key_bytes: int, node_bytes: int) -> None:
        self._store = store
        self._num_layers = num_layers
        self._key_bytes = key_bytes
        self._node_bytes = node_bytes
        self._cuts: dict[tuple[int, int], Cut] = {}  # by record: asked for again in every layer

    def nodes(self, places: list[LeafPlace], first: int) -> list[RecordNodes]:
        """Of columns `first` on, record by record; ends in front of the first record that has no keys."""
        starts = [c for c in range(first, len(places)) if c == first or not places[c - 1].precedes(places[c])]
        kept = self._store.read_sections([places[c] for c in starts], KIND_NODES)
        data = {section.place: section.data for section in kept}
        found = []
        for start, stop in zip(starts, [*starts[1:], len(places)], strict=True):
            place = places[start]
            if self._cut_of(place) is None:
                break
            nodes = self._by_number(data.get(place), start - place.leaf, stop)
            found.append(RecordNodes(start, stop, nodes))
        return found

    def _by_number(self, data: bytearray | None, record_start: int, stop: int) -> dict[int, Bytes]:
        first = record_start // NODE_COLUMNS
        row = self._num_layers * self._node_bytes
        if not data or len(data) % row:
            return {}
        rows = np.frombuffer(data, np.uint8).reshape(self._num_layers, len(data) // row, self._node_bytes)
        last = min(first + rows.shape[1], stop // NODE_COLUMNS)  # a path may leave a record in its middle
        return {number: rows[:, number - first] for number in range(first, last)}

    def read_keys(
        self, places: list[LeafPlace], layer: int, columns: NDArray[np.intp], keys: Bytes
    ) -> NDArray[np.intp]:
        """Read low-bit keys of one layer into `keys` `[num_columns, key_bytes]`; all columns that arrived.

        `columns`: ascending; those that share a piece with them come along. Rows of other columns, which may be
        there already, are written only by a piece that verified; rows of `columns` that did not arrive are void.
        """
        requests: list[PieceRead] = []
        spans: list[tuple[int, int]] = []
        copies: list[tuple[int, int, int, Bytes]] = []
        done = -1
        for column in columns.tolist():
            if column < done:
                continue
            place = places[column]
            cut = self._cut_of(place)
            if cut is None or cut.num_runs != self._num_layers:
                continue
            number, inside = divmod(place.leaf, _PIECE_LEAVES)
            piece = layer * cut.pieces_per_run + number
            start, stop = column - inside, column - inside + cut.size(piece) // self._key_bytes
            first, done = self._same_record(places, column, max(0, start), min(len(keys), stop))
            into = keys[start:stop]
            asked = np.searchsorted(columns, (first, done))
            # Not all of a piece is asked for where the path enters or leaves the record inside of it, or where some
            # of it is there already: what does not verify must not lie over that.
            if (first, done) != (start, stop) or asked[1] - asked[0] < done - first:
                into = np.empty((stop - start, self._key_bytes), np.uint8)
                copies.append((len(requests), first, done, into[first - start : done - start]))
            requests.append(PieceRead(place, KIND_KEYS, piece, 1, into.data.cast("B")))
            spans.append((first, done))
        transfer = self._store.read_pieces(requests)
        transfer.wait()
        failed = {fault.request for fault in transfer.result}
        for request, first, done, rows in copies:
            if request not in failed:
                keys[first:done] = rows
        arrived = [np.arange(*span) for i, span in enumerate(spans) if i not in failed]
        return np.concatenate(arrived) if arrived else np.empty(0, np.intp)

    def _cut_of(self, place: LeafPlace) -> Cut | None:
        """How the keys of a record are cut. What is remembered stays true: records never change, only go."""
        record = (place.segment, place.record)
        known = self._cuts.get(record)
        if known is None and (known := self._store.section_cut(place, KIND_KEYS)) is not None:
            if len(self._cuts) >= _MAX_CUTS:
                self._cuts.clear()
            self._cuts[record] = known
        return known

    @staticmethod
    def _same_record(places: list[LeafPlace], column: int, start: int, stop: int) -> tuple[int, int]:
        """The run of columns in [start, stop) around `column` that are neighbours in its record."""
        first, last = column, column + 1
        while first > start and places[first - 1].precedes(places[first]):
            first -= 1
        while last < stop and places[last] is not None and places[last - 1].precedes(places[last]):
            last += 1
        return first, last
