"""The half of a store that finds and reads: what it was asked for, and nothing that writes.

Knows the catalog, the readers and the sections; any number of threads.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

import numpy as np

from edgekv_storage.errors import StorageError, StoreClosed
from edgekv_storage.segments.format import LEAF_TOKENS, NO_PARENT

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from edgekv_storage.datadir import DataDir
    from edgekv_storage.io.disk import Disk
    from edgekv_storage.segments.format import Layout
    from edgekv_storage.segments.sections import Cut
    from edgekv_storage.store.catalog import Catalog
    from edgekv_storage.store.indexing import Indexing
    from edgekv_storage.store.readers import Readers
    from edgekv_storage.store.sections import SectionData, Sections
    from edgekv_storage.store.transfer import LeafPlace, LeafRead, PieceRead, Transfer


class Finding:
    """What `Store` is made of where it reads; set up there."""

    layout: Layout | None
    directory: DataDir
    _disk: Disk
    _catalog: Catalog
    _indexing: Indexing
    _readers: Readers
    _sections: Sections
    _is_closed: bool

    def lookup(
        self, sequence_id: bytes, keys: Sequence[bytes], token_ids: NDArray[np.int32]
    ) -> list[LeafPlace]:
        """Places of the longest prefix of `keys` that is present and holds just these ids [leaves * 16].

        Keys may be of several namespaces, each continuing from the one before it.
        """
        self._need_layout()
        if len(token_ids) < len(keys) * LEAF_TOKENS:
            raise ValueError(
                f"{len(keys)} keys need {len(keys) * LEAF_TOKENS} token ids, not {len(token_ids)}"
            )
        self._load(sequence_id)
        with self._catalog.lock:
            places = self._catalog.find(sequence_id, keys)
            touched = self._catalog.touch(sequence_id, time.time_ns(), places)
        for segment in touched:
            segment.keep_use(self._disk)
        self._readers.load_tables(places)
        ids = np.asarray(token_ids[: len(places) * LEAF_TOKENS], np.int32).reshape(-1, LEAF_TOKENS)
        return places[: self._readers.count_same(places, ids, keys)]

    def provenances(self, places: Sequence[LeafPlace]) -> list[int | None]:
        """How each leaf came to be, as told to `append`; None where it is not in the store any more.

        Costs nothing after a `lookup`: it stands in the tables that were read then. Raises StoreClosed.
        """
        self._need_own_process()
        return self._sections.provenances(places)

    def read(self, requests: Sequence[LeafRead], priority: int = 0, *, waits: bool = False) -> Transfer:
        """Starts reading runs of leaves into the callers' memory; lower `priority` numbers go first.

        `waits`: the caller can do nothing else until they are there; they go before all others, if possible in the
        caller's own thread, and the transfer is mostly done on return.
        Leaves that fail their checksum are in the transfer's `result` and not found again. Raises
        StoreClosed; ValueError for a run that leaves its record or a buffer of the wrong size.
        """
        self._need_own_process()
        return self._readers.read(requests, self._need_layout(), priority, waits=waits)

    def read_pieces(self, requests: Sequence[PieceRead], priority: int = 0) -> Transfer:
        """Starts reading pieces of sections into the callers' memory, as `read` does with leaves.

        Pieces that do not arrive are in the transfer's `result`, `LeafFault.leaf` counting pieces; no leaf is lost
        with them. "not in the store": the record is gone, or only some of its leaves were copied elsewhere;
        look the leaves up again. Raises StoreClosed; ValueError for pieces that the section has not, or a
        buffer of the wrong size.
        """
        self._need_own_process()
        return self._sections.read(requests, priority)

    def section_cut(self, place: LeafPlace, kind: int) -> Cut | None:
        """How a section of the record that holds `place` is cut; None where it has none."""
        self._need_own_process()
        return self._sections.cut_of(place, kind)

    def holds(self, sequence_id: bytes, key: bytes) -> bool:
        """Whether a leaf with this key was written, whatever came before it; its ids are not compared."""
        self._load(sequence_id)
        with self._catalog.lock:
            return bool(self._catalog.find(sequence_id, [key]))

    def ends(self, sequence_id: bytes, keys: Sequence[bytes]) -> list[int]:
        """How many of the first `keys` some extent of the sequence was written behind, descending: where another
        path may leave this one.
        """
        self._load(sequence_id)
        with self._catalog.lock:
            parents = self._catalog.parents(sequence_id)
        found = [0] if NO_PARENT in parents else []
        found += [end for end, key in enumerate(keys, 1) if key in parents]
        return found[::-1]

    def read_section(self, place: LeafPlace, kind: int) -> bytes | None:
        """A typed section of the record that holds `place`; None where it has none or it is damaged."""
        self._need_own_process()
        data = self._sections.read_all([place], kind)[0].data
        return None if data is None else bytes(data)

    def read_sections(self, places: Sequence[LeafPlace], kind: int, priority: int = 0) -> list[SectionData]:
        """The sections of one kind of all records that hold any of `places`, asked for at once; waits.

        One for each record, in the order of `places`. Raises StoreClosed.
        """
        self._need_own_process()
        return self._sections.read_all(places, kind, priority)

    def _need_own_process(self) -> None:
        """Before any lock: in a child made by fork nobody may be left to open it. Raises StoreClosed."""
        self.directory.require_own_process()

    def _load(self, sequence_id: bytes) -> None:
        """Keys of all leaves of a sequence: from the index, from its segments where the index fails."""
        self._need_own_process()
        with self._catalog.lock:
            self._need_open()
            self._indexing.load(sequence_id, self.layout)

    def _need_layout(self) -> Layout:
        if self.layout is None:
            raise StorageError(
                "the store was opened without a model: it can forget and check, not append or find"
            )
        return self.layout

    def _need_open(self) -> None:
        if self._is_closed:
            raise StoreClosed("the store is closed")
