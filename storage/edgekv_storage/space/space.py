"""Keeps the store within its limits: what goes when the quota or the drive is full, and what was lost by it.

Knows sizes and reasons; eviction.py decides, this carries it out.
"""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING

from edgekv_storage.errors import Unwritable
from edgekv_storage.space.compaction import Compactor
from edgekv_storage.space.eviction import Piece, choose
from edgekv_storage.space.losses import LOWERED, QUOTA
from edgekv_storage.space.outline import Outline

if TYPE_CHECKING:
    from collections.abc import Collection

    from edgekv_storage.segments.segment import Segment
    from edgekv_storage.space.eviction import PrefillCost
    from edgekv_storage.store.parts import Parts


class Space:
    """Any thread; takes the store's locks itself."""

    def __init__(self, parts: Parts, cost: PrefillCost) -> None:
        self.cost = cost
        self._parts = parts
        self._compactor = Compactor(parts, self.outline)

    def fit_quota(self) -> None:
        """At open: the quota may be lower than the last time; nobody has places yet that become stale."""
        parts = self._parts
        quota = parts.writers.quota_bytes
        try:
            evicted = self.evict(quota, why=LOWERED)
        except Unwritable as error:
            parts.notices.append(
                f"more is kept on disk than the limit of {quota / 1e9:.1f} GB allows: {error}"
            )
            return
        if evicted:
            parts.notices.append(
                f"the disk limit is now {quota / 1e9:.1f} GB: KV of {len(evicted)} conversation(s) that is "
                "least likely to be missed was dropped; their text is kept, and it is computed again when "
                "needed"
            )

    def make_room(self, num_bytes: int, keep: Collection[bytes] = ()) -> list[bytes]:
        """After an append was refused: evicts to 90 % of the limit that refused it, or as far as just needed.

        Returns the sequences that lost something; empty where nothing can go. Raises Unwritable.
        """
        writers, live = self._parts.writers, self._live_bytes
        why, needed = writers.refused
        needed = max(needed, num_bytes)
        if why == QUOTA:
            tight = writers.quota_bytes - needed
            roomy = min(tight, int(writers.quota_bytes * 0.9) - needed)
        else:  # of the drive we cannot take more than what we hold ourselves
            tight = live - max(needed, needed - writers.free_bytes())
            roomy = min(int(writers.quota_bytes * 0.9), tight - live // 10)
        return self.evict(roomy, keep, why) or self.evict(tight, keep, why)

    def evict(self, target_bytes: int, keep: Collection[bytes] = (), why: str = QUOTA) -> list[bytes]:
        """Gives up the tails that are least likely to be missed until the files hold <= target bytes.

        Returns the sequences that lost something. Gives up nothing where even all but `keep` would not be
        enough. Raises Unwritable.
        """
        parts = self._parts
        if self._live_bytes <= target_bytes:
            return []
        with parts.flush_lock, parts.write_lock:
            self._compactor.abandon()
            self._remove_useless()
            outlines: dict[bytes, Outline] = {}
            pieces: list[Piece] = []
            with parts.catalog.lock:
                needed = parts.catalog.live_bytes - target_bytes
                if needed <= 0:
                    return []
                for sequence_id in parts.catalog.sequences():
                    if sequence_id not in keep:
                        outlines[sequence_id] = self.outline(sequence_id)
                        segments = parts.catalog.segments_of(sequence_id)
                        pieces += outlines[sequence_id].pieces(segments, self.cost)
            chosen = choose(pieces, needed)
            gone = [parts.catalog.segments[segment] for segment in chosen]
            evicted = self._count_losses(gone, outlines, why)
            if gone:
                parts.remove(gone)
        return evicted

    def _remove_useless(self) -> None:
        """Before anything that is of use: what cannot be read, and files that could not be removed before."""
        parts = self._parts
        with contextlib.suppress(Unwritable):  # they go on counting
            if num_files := parts.empty_quarantine():
                parts.notices.append(
                    f"{num_files} damaged file(s) in quarantine/ were removed: room is needed"
                )
        with contextlib.suppress(Unwritable):
            if leaving := list(parts.catalog.leaving.values()):
                parts.remove(leaving)

    def _count_losses(self, gone: list[Segment], outlines: dict[bytes, Outline], why: str) -> list[bytes]:
        by_sequence: dict[bytes, list[Segment]] = {}
        for segment in gone:
            by_sequence.setdefault(segment.header.sequence_id, []).append(segment)
        with self._parts.catalog.lock:
            for sequence_id, segments in by_sequence.items():
                num_tokens = outlines[sequence_id].num_tokens({s.header.segment for s in segments})
                self._parts.indexing.losses.add(
                    sequence_id, why, num_tokens, sum(s.live_bytes for s in segments)
                )
                self._parts.catalog.dirty.add(sequence_id)
        return list(by_sequence)

    def outline(self, sequence_id: bytes) -> Outline:
        """What of a sequence is of use; the catalog's lock is held."""
        catalog = self._parts.catalog
        return Outline(self._parts.indexing.rows_of(catalog.segments_of(sequence_id)), catalog.dead)

    @property
    def copied_bytes(self) -> int:
        """Of leaves, by compaction since open."""
        return self._compactor.copied_bytes

    def tidy(self) -> bool:
        """One small step of cleaning up, at idle; True while there is more to do."""
        with self._parts.flush_lock:
            return self._compactor.step()

    def stop(self) -> None:
        """Gives up what is half done; the flush lock is held."""
        self._compactor.abandon()

    @property
    def _live_bytes(self) -> int:
        with self._parts.catalog.lock:
            return self._parts.catalog.live_bytes
