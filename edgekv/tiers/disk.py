"""The disk tier: leaves of durable sequences in the store. Tensors stop here; below are bytes and places.

Knows how columns map to the store's places and how neighbouring leaves become one read. A store that fails
or fills up is turned off for writing with one notice; what it holds stays readable.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from edgekv.cache.leaf import LEAF_TOKENS
from edgekv.cache.ledger import Tier
from edgekv.cache.runs import common_runs
from edgekv_storage import DiskFull, LeafRead, QuotaExceeded, StorageError, Store

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from numpy.typing import NDArray

    from edgekv.cache.leaf import LeafShape
    from edgekv.cache.ledger import Ledger
    from edgekv.cache.sequence import Sequence
    from edgekv.tiers.memory import MemoryTier
    from edgekv_storage import LeafPlace, Pieces, Transfer

    Sections = Mapping[int, bytes | Pieces]

NAMESPACE_EXACT, NAMESPACE_SELECTED = b"exact", b"selected"
"""Part of every key: leaves made under another attention mode must not be taken for exact ones."""
PROVENANCE_EXACT, PROVENANCE_SELECTED = 0, 1
_KEYS_AT_ONCE = 512


@dataclass(frozen=True, slots=True)
class Found:
    """Stored columns of a prefix: places, chain keys, and how many of the first are exact."""

    places: list[LeafPlace]
    keys: list[bytes]
    num_exact: int


@dataclass(frozen=True, slots=True)
class LayerRead:
    """A read of several columns of one layer that is under way; request i begins at `columns[starts[i]]`."""

    transfer: Transfer
    columns: NDArray[np.intp]
    starts: list[int]

    def land(self) -> None:
        """Block until nothing of it will touch its slots any more, whatever has arrived."""
        self.transfer.wait()

    def wait(self) -> NDArray[np.intp]:
        """Block until it landed; the columns that could not be read or verified (none when all is well)."""
        self.land()
        damaged = {self.columns[self.starts[f.request] + f.leaf] for f in self.transfer.result}
        return np.array(sorted(damaged), dtype=np.intp)


class DiskTier:
    """Appends, finds and reads columns of sequences."""

    def __init__(self, store: Store, shape: LeafShape, ledger: Ledger) -> None:
        self.store = store
        self.shape = shape
        self.is_writable = True
        self.active_id: bytes | None = None  # whose KV must not give way at the quota
        self.notify: Callable[[str], None] = lambda _message: None
        self._ledger = ledger
        self._evicted: list[bytes] = []
        self._observe()

    def _observe(self) -> None:
        self._ledger.observe(Tier.DISK, self.store.live_bytes)

    def extend_keys(
        self,
        sequence: Sequence,
        token_ids: list[int],
        num_exact: int | None = None,
        known: list[bytes] | None = None,
    ) -> list[bytes]:
        """Chain keys of all full columns of `token_ids`, the first of which are `known` (None: `sequence.keys`).

        `num_exact` columns count as made under exact attention, None: all of them.
        """
        keys, num_full = list(sequence.keys if known is None else known), len(token_ids) // LEAF_TOKENS
        bounds = [
            (NAMESPACE_EXACT, num_full if num_exact is None else num_exact),
            (NAMESPACE_SELECTED, num_full),
        ]
        for namespace, stop in bounds:
            if stop > len(keys):
                ids = np.asarray(token_ids[len(keys) * LEAF_TOKENS : stop * LEAF_TOKENS], dtype=np.int32)
                keys += self.store.leaf_keys(sequence.id, namespace, ids, keys[-1] if keys else None)
        return keys

    def find(self, sequence: Sequence, token_ids: list[int], *, only_exact: bool) -> Found:
        """The longest stored prefix of `token_ids`, one place per full column.

        With `only_exact` columns made under exact attention only; the sequence's own must be such then.
        """
        own = sequence.num_full
        if own * LEAF_TOKENS > sequence.num_exact:  # what follows a selected column is selected
            return self._look(sequence, token_ids, sequence.num_exact // LEAF_TOKENS)
        exact = self._look_exactly(sequence, token_ids)
        if only_exact:
            return exact
        found = [
            self._look(sequence, token_ids, end, exact.keys[:end])
            for end in self.store.ends(sequence.id, exact.keys)  # selection may have begun at any of them
            if end >= own and self._is_selected(sequence, token_ids, exact.keys, end)
        ]
        return max([exact, *found], key=lambda path: len(path.places))

    def _is_selected(
        self, sequence: Sequence, token_ids: list[int], exact_keys: list[bytes], column: int
    ) -> bool:
        """Whether the column was stored as made under selection behind exact ones."""
        ids = np.asarray(token_ids[column * LEAF_TOKENS : (column + 1) * LEAF_TOKENS], dtype=np.int32)
        parent = exact_keys[column - 1] if column else None
        keys = self.store.leaf_keys(sequence.id, NAMESPACE_SELECTED, ids, parent)
        return bool(keys) and self.store.holds(sequence.id, keys[0])

    def _look_exactly(self, sequence: Sequence, token_ids: list[int]) -> Found:
        """Hashes no more of a path than is stored of it, or a little more."""
        keys, num_full = list(sequence.keys), len(token_ids) // LEAF_TOKENS
        while len(keys) < num_full:
            stop = min(num_full, len(keys) + _KEYS_AT_ONCE)
            keys = self.extend_keys(sequence, token_ids[: stop * LEAF_TOKENS], known=keys)
            if not self.store.holds(sequence.id, keys[-1]):
                break
        return self._look(sequence, token_ids[: len(keys) * LEAF_TOKENS], None, keys)

    def _look(
        self,
        sequence: Sequence,
        token_ids: list[int],
        num_exact: int | None,
        known: list[bytes] | None = None,
    ) -> Found:
        keys = self.extend_keys(sequence, token_ids, num_exact, known)
        ids = np.asarray(token_ids[: len(keys) * LEAF_TOKENS], dtype=np.int32)
        places = list(self.store.lookup(sequence.id, keys, ids))
        exact = len(places) if num_exact is None else min(num_exact, len(places))
        return Found(places, keys[: len(places)], exact)

    def adopt(self, sequence: Sequence, token_ids: list[int], found: Found) -> None:
        """Make the columns found part of the sequence: present on disk, absent above."""
        num_found = len(found.places)
        # First what takes memory: tokens without columns could never be read.
        sequence.directory.grow(num_found)
        sequence.directory.places[:] = found.places
        sequence.token_ids[:] = token_ids[: num_found * LEAF_TOKENS]
        sequence.keys = found.keys
        sequence.num_exact = found.num_exact * LEAF_TOKENS
        sequence.num_written = max(sequence.num_written, num_found)

    def append(
        self, sequence: Sequence, columns: range, leaves: list[memoryview], sections: Sections
    ) -> bool:
        """Write full columns as one extent; `leaves` are their bytes by layer, then column.

        False when the store cannot take them (said once through `notify`); then nothing changed.
        """
        num_exact = sequence.num_exact // LEAF_TOKENS
        sequence.keys = self.extend_keys(sequence, sequence.token_ids, num_exact)
        start, stop = columns.start, columns.stop
        ids = np.asarray(sequence.token_ids[start * LEAF_TOKENS : stop * LEAF_TOKENS], dtype=np.int32)
        parent = sequence.keys[start - 1] if start else None
        try:
            provenance = PROVENANCE_EXACT if stop <= num_exact else PROVENANCE_SELECTED
            assert stop <= num_exact or start >= num_exact, "one extent, one provenance"
            places = self._append(
                sequence.id, sequence.keys[start:stop], parent, ids, leaves, provenance, sections
            )
        except StorageError as error:
            self.is_writable = False
            self.notify(f"nothing more is kept on disk this turn: {error}; the answer goes on from memory")
            return False
        finally:
            self._observe()
        sequence.directory.places[start:stop] = places
        sequence.num_written = stop
        return True

    def _append(
        self,
        sequence_id: bytes,
        keys: list[bytes],
        parent: bytes | None,
        token_ids: NDArray[np.int32],
        leaves: list[memoryview],
        provenance: int,
        sections: Sections,
    ) -> list[LeafPlace]:
        """Append; where there is no room, what is least likely to be missed of the others gives way first."""
        try:
            return self.store.append(
                sequence_id, keys, parent, token_ids, leaves, provenance=provenance, sections=sections
            )
        except (QuotaExceeded, DiskFull):
            keep = {sequence_id, self.active_id or sequence_id}
            before = self.store.live_bytes
            evicted = self.store.make_room(len(keys) * self.shape.column_bytes, keep)
            if (
                not evicted and self.store.live_bytes >= before
            ):  # what nobody misses may have made room as well
                raise
            self._evicted += evicted
            if evicted:
                self.notify(
                    f"no room on disk: KV of {len(evicted)} conversation(s) that is least likely to be missed was "
                    "dropped; their text is kept, and it is computed again when needed"
                )
            return self.store.append(
                sequence_id, keys, parent, token_ids, leaves, provenance=provenance, sections=sections
            )

    def why_missing(self, sequence_id: bytes) -> str | None:
        """Why KV of a sequence was given up since it was last written, None where none was."""
        losses = self.store.forgotten(sequence_id)
        return losses[0].why if losses else None

    def stored_paths(self, sequence_id: bytes) -> list[NDArray[np.int32]]:
        """Token ids of every path stored of a sequence (any thread). Raises edgekv_storage.StorageError."""
        return self.store.stored_paths(sequence_id, NAMESPACE_EXACT)

    def take_evicted(self) -> list[bytes]:
        """Sequences whose places became stale since the last call."""
        evicted, self._evicted = self._evicted, []
        return evicted

    def read(
        self,
        places: list[LeafPlace],
        layer: int,
        columns: NDArray[np.intp],
        slots: NDArray[np.int32],
        into: MemoryTier,
        *,
        waits: bool = False,
    ) -> LayerRead:
        """Start reading `columns` of one layer into `slots` of a CPU pool; neighbours in one request.

        `waits`: the caller waits for it next.
        """
        starts, requests = [], []
        for start, stop in common_runs(columns, slots):
            cut = start
            for index in range(start + 1, stop + 1):  # a run of neighbours may still cross records
                if index == stop or not places[columns[index - 1]].precedes(places[columns[index]]):
                    out = into.leaf_view(int(slots[cut]), index - cut)
                    requests.append(LeafRead(places[columns[cut]], layer, index - cut, out))
                    starts.append(cut)
                    cut = index
        return LayerRead(self.store.read(requests, waits=waits), columns, starts)

    def forget(self, sequence_id: bytes) -> None:
        """Remove everything of a sequence from disk."""
        self.store.forget(sequence_id)
        self._observe()
