"""The store's dealings with index.db: opened or made anew, told what is safe, done without when it fails.

Knows index and catalog. A failing index never fails the store: it is dropped, one notice says so, and the
next start rebuilds it from the segments.
"""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING

from edgekv_storage.files import SegmentFile
from edgekv_storage.segments.format import LEAF_TOKENS
from edgekv_storage.segments.recover import record_rows, segment_row
from edgekv_storage.segments.segment import scan
from edgekv_storage.space.losses import DAMAGE, Losses
from edgekv_storage.store.catalog import Known
from edgekv_storage.store.index import Index, IndexBroken, RecordRow
from edgekv_storage.store.transfer import LeafPlace

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Sequence
    from pathlib import Path

    from edgekv_storage.io.disk import Disk
    from edgekv_storage.segments.format import Layout
    from edgekv_storage.segments.recover import Found
    from edgekv_storage.segments.segment import Segment
    from edgekv_storage.store.catalog import Catalog
    from edgekv_storage.store.index import SegmentRow


class Indexing:
    """Rows waiting until their bytes are on the drive, and the index they go to.

    Guarded by the catalog's lock.
    """

    def __init__(self, disk: Disk, path: Path, catalog: Catalog, notices: list[str]) -> None:
        self._disk = disk
        self._path = path
        self._catalog = catalog
        self._notices = notices
        self._index: Index | None = None
        self._pending: list[RecordRow] = []
        self._touched: dict[int, Segment] = {}
        self.newly_dead: set[LeafPlace] = set()
        self.losses = Losses()
        self.segment_rows = self._open()

    @property
    def bytes_written(self) -> int:
        """Bytes appended to SQLite's journal."""
        return self._index.bytes_written if self._index is not None else 0

    def _open(self) -> list[SegmentRow]:
        """A broken index is deleted and made anew, once."""
        for is_last in (False, True):
            index: Index | None = None
            try:
                index = Index(self._path, self._disk)
                rows = index.segments()
                self.losses = Losses(index.losses())
            except (IndexBroken, OSError) as reason:
                if index is not None:
                    index.close()
                if is_last:
                    self._notices.append(
                        f"going on without an index ({reason}): every start scans the segments"
                    )
                    break
                self._notices.append(f"the index is rebuilt from the segments ({reason})")
                with contextlib.suppress(OSError):  # the second attempt tells
                    self._disk.remove_database(self._path)
            else:
                self._index = index
                return rows
        return []

    def indexed(self, segment_id: int) -> list[RecordRow]:
        """Rows of one segment, empty where the index fails."""
        try:
            return self._index.records([segment_id]) if self._index is not None else []
        except IndexBroken as reason:
            self.lose(str(reason))
            return []

    def rows_of(self, segments: list[Segment]) -> list[RecordRow]:
        """Every record of the segments that can be read, in the order they were written. Fills catalog.dead."""
        rows: list[RecordRow] = []
        unread: list[Segment] = []
        for segment in segments:
            known = self._catalog.rows_of(segment)
            if known is not None:
                rows += known
            elif segment.seal is not None:
                unread.append(segment)
        indexed = self._indexed([segment.header.segment for segment in unread])
        for segment in unread:
            found = indexed.get(segment.header.segment, [])
            is_whole = len(found) == segment.num_records - segment.num_damaged
            rows += found if is_whole else self._scanned(segment)
        return sorted(rows, key=lambda row: (row.segment, row.number))

    def _indexed(self, ids: list[int]) -> dict[int, list[RecordRow]]:
        """What the index knows of the segments."""
        if self._index is None or not ids:
            return {}
        try:
            found = {segment_id: self._index.records([segment_id]) for segment_id in ids}
            self._catalog.dead |= {LeafPlace(*place) for place in self._index.dead(ids)}
        except IndexBroken as reason:
            self.lose(str(reason))
            return {}
        return found

    def _scanned(self, segment: Segment) -> list[RecordRow]:
        """The rows of a segment that the index lacks, which learns them."""
        assert segment.seal is not None, "an unreadable segment has no rows"
        file = SegmentFile(segment.path, use_direct=False, disk=self._disk)
        try:
            rows = record_rows(segment.header.segment, scan(file, segment.header, segment.seal))
        except OSError:  # a file that is gone has no leaves
            return []
        self.commit([segment], rows)
        return rows

    def take_stock(self, found: Found) -> None:
        """At open: what lies in the directory goes to the catalog and, where it is news, to the index."""
        with self._catalog.lock:
            for segment in found.segments:
                self._catalog.add_segment(segment)
            self._catalog.next_segment = max(self._catalog.next_segment, found.highest_id + 1)
            for sequence_id, num_tokens, num_bytes in found.lost:
                self.losses.add(sequence_id, DAMAGE, num_tokens, num_bytes)
        self.commit(found.changed, found.records, gone=found.gone)
        self.keep_losses()

    def load(self, sequence_id: bytes, layout: Layout | None) -> None:
        """Publishes the leaves of a sequence that are in the layout, once; the catalog's lock is held."""
        if self._catalog.is_loaded(sequence_id):
            return
        segments = self._catalog.segments_of(sequence_id)
        for row in self.rows_of([s for s in segments if s.header.layout == layout and s.seal is not None]):
            segment = self._catalog.segments[row.segment]
            self._catalog.add_record(segment, row.number, Known(row.entry, row.keys, row.parent))
        self._catalog.set_loaded(sequence_id)

    def appended(self, segment: Segment, row: RecordRow) -> None:
        """A record to be indexed once it is on the drive."""
        self._pending.append(row)
        self._touched[row.segment] = segment

    def died(self, places: Iterable[LeafPlace]) -> None:
        """Leaves not to be found after a restart either."""
        for place in places:
            self.newly_dead.add(place)
            header = self._catalog.segments[place.segment].header
            size = header.layout.num_layers * header.layout.leaf_bytes
            self.losses.add(header.sequence_id, DAMAGE, LEAF_TOKENS, size)

    def commit_synced(self) -> None:
        """Commits the rows of what has reached the drive."""
        with self._catalog.lock:
            ready: list[RecordRow] = []
            later: list[RecordRow] = []
            for row in self._pending:
                segment = self._catalog.segments[row.segment]
                is_safe = row.entry.offset + row.entry.record_bytes <= segment.synced
                (ready if is_safe else later).append(row)
            self._pending = later
            touched = list(self._touched.values())
            self._touched = {s.header.segment: s for s in touched if not s.is_sealed}
            dead, self.newly_dead = self.newly_dead, set()
        if ready or dead or any(s.is_sealed for s in touched):
            self.commit(touched, ready, dead)
        self.keep_losses()

    def commit(
        self,
        segments: Sequence[Segment],
        records: Sequence[RecordRow],
        dead: Collection[LeafPlace] = (),
        gone: Sequence[tuple[str, int]] = (),
    ) -> None:
        """Writes rows now; `gone` are segments (name, id) that exist no more."""
        index = self._index
        if index is None:
            return
        try:
            if gone:
                index.drop(gone)
            if segments or records or dead:
                index.commit(
                    [segment_row(s) for s in segments], records, [(p.segment, p.record, p.leaf) for p in dead]
                )
        except IndexBroken as reason:
            self.lose(str(reason))

    def forget(self, segments: list[Segment]) -> None:
        """Removes segments, from SQLite's journal too."""
        ids = {segment.header.segment for segment in segments}
        self._pending = [row for row in self._pending if row.segment not in ids]
        self._touched = {i: s for i, s in self._touched.items() if i not in ids}
        self.newly_dead = {place for place in self.newly_dead if place.segment not in ids}
        self.keep_losses()
        index = self._index
        if index is not None:
            try:
                index.drop([(s.path.name, s.header.segment) for s in segments], wipe=True)
            except IndexBroken as reason:
                self.lose(str(reason))

    def keep_losses(self) -> None:
        """Writes down losses that changed."""
        with self._catalog.lock:
            changed, self.losses.changed = self.losses.changed, set()
            rows = {sequence_id: self.losses.of(sequence_id) for sequence_id in changed}
        if self._index is not None and rows:
            try:
                self._index.keep_losses(rows)
            except IndexBroken as reason:
                self.lose(str(reason))

    def lose(self, reason: str) -> None:
        """Goes on without an index."""
        index, self._index = self._index, None
        if index is not None:
            self._notices.append(f"the index failed ({reason}); the next start rebuilds it from the segments")
            index.close()
            with contextlib.suppress(OSError):
                self._disk.remove_database(self._path)

    def close(self) -> None:
        """Never raises."""
        if self._index is not None:
            self._index.close()
