"""Copies what is still of use out of segments that are mostly dead, so that their bytes can be given back.

Knows one segment at a time; a step copies one record, so that nobody waits for more. Damaged leaves are left
behind. Order: new file -> fsync -> index -> found in the new place -> old file removed. A crash in between leaves
both files, and the newer one is found.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from edgekv_storage.errors import StorageError
from edgekv_storage.segments.format import LEAF_TOKENS, NO_PARENT
from edgekv_storage.segments.record import Extent
from edgekv_storage.segments.sections import part_of
from edgekv_storage.space.losses import DAMAGE
from edgekv_storage.space.outline import LeafRange
from edgekv_storage.store.catalog import Known, Moved
from edgekv_storage.store.index import RecordRow
from edgekv_storage.store.transfer import DAMAGED, LeafPlace, LeafRead

if TYPE_CHECKING:
    from collections.abc import Callable

    from edgekv_storage.files import Buffer
    from edgekv_storage.segments.format import Layout
    from edgekv_storage.segments.record import RecordTables
    from edgekv_storage.segments.sections import Pieces
    from edgekv_storage.segments.segment import Segment, SegmentWriter
    from edgekv_storage.space.outline import Outline
    from edgekv_storage.store.parts import Parts

MIN_LIVE = 0.25  # below it, copying the rest costs less than a third of what it frees
_COPY_BYTES = 16 << 20  # of one step
_LAST = 1000  # priority of its reads: after everyone's


@dataclass(slots=True)
class _Job:
    source: Segment
    layout: Layout
    ranges: deque[LeafRange]
    wanted: list[LeafRange]
    writer: SegmentWriter | None = None
    moved: list[tuple[Moved, Known]] = field(default_factory=list)


class Compactor:
    """Steps are taken with the store's flush lock held, so that nothing is forgotten meanwhile."""

    def __init__(self, parts: Parts, outline: Callable[[bytes], Outline]) -> None:
        self._parts = parts
        self._outline = outline
        self._job: _Job | None = None
        self.copied_bytes = 0  # of leaves, since open

    def step(self) -> bool:
        """True while there is more to do; problems become notices."""
        job = self._job
        if self._parts.layout is None or self._parts.writers.off_reason is not None:
            return False
        try:
            if job is None:
                return self._look()
            if job.ranges:
                self._copy(job, job.ranges[0])
                job.ranges.popleft()  # only now: what was not copied must never count as copied
            else:
                self._finish(job)
        except OSError as error:
            self._parts.notices.append(str(self._parts.writers.failed(error)))
            self._give_up(job)
        except StorageError:  # no room (the next eviction makes some), or a read that failed for now
            self._give_up(job)
        except BaseException:  # no memory, no thread, Ctrl-C: the source stays as it is
            self._give_up(job)
            raise
        return True

    def _give_up(self, job: _Job | None) -> None:
        """Not again before something of the sequence changes: it would fail the same way."""
        self.abandon()
        if job is not None:
            with self._parts.catalog.lock:
                self._parts.catalog.dirty.discard(job.source.header.sequence_id)

    def abandon(self) -> None:
        """Forgets a half-made copy; its source is still whole."""
        job, self._job = self._job, None
        if job is not None and job.writer is not None:
            job.writer.segment.reserved_bytes = 0
            self._parts.writers.count_closed(job.writer)
            self._remove(job.writer.segment)

    def _look(self) -> bool:
        """Begins with a segment that is mostly dead, where there is one among the changed sequences."""
        catalog, layout = self._parts.catalog, self._parts.layout
        assert layout is not None
        with catalog.lock:
            if not catalog.dirty:
                return False
            sequence_id = catalog.dirty.pop()
            outline = self._outline(sequence_id)
            for segment in catalog.segments_of(sequence_id):
                is_ours = segment.header.layout == layout and segment.seal is not None
                if not (is_ours and segment.is_sealed) or outline.live_share(segment) >= MIN_LIVE:
                    continue
                self._parts.indexing.load(sequence_id, layout)  # only now: others stay out of memory
                catalog.dirty.add(sequence_id)  # there may be more
                self._begin(segment, layout, outline)
                return True
        return True

    def _begin(self, segment: Segment, layout: Layout, outline: Outline) -> None:
        most = max(1, _COPY_BYTES // (layout.num_layers * layout.leaf_bytes))
        ranges: deque[LeafRange] = deque()
        for part in outline.useful(segment.header.segment):
            for first in range(part.first, part.first + part.count, most):
                count = min(most, part.first + part.count - first)
                ranges.append(LeafRange(part.record, first, count))
        self._job = _Job(segment, layout, ranges, list(ranges))

    def _copy(self, job: _Job, part: LeafRange) -> None:
        """Reads, verifies and writes one range of leaves. Raises StorageError, OSError."""
        parts, place = self._parts, LeafPlace(job.source.header.segment, part.record, part.first)
        parts.readers.load_tables([place])
        known = parts.catalog.record(place.segment, place.record)
        if known is None or known.tables is None:
            self._judge(job, [place._replace(leaf=part.first + leaf) for leaf in range(part.count)])
            return
        size = part.count * job.layout.leaf_bytes
        layers = [memoryview(bytearray(size)) for _ in range(job.layout.num_layers)]
        reads = [LeafRead(place, layer, part.count, out) for layer, out in enumerate(layers)]
        transfer = parts.readers.read(reads, job.layout, _LAST)
        transfer.wait()
        if transfer.result:
            bad = {fault.leaf for fault in transfer.result}
            self._judge(job, [place._replace(leaf=part.first + leaf) for leaf in bad])
            return
        sections = self._sections(place, known.tables, part.count)
        stop = part.first + part.count
        extent = Extent(
            known.keys[part.first : stop],
            known.keys[part.first - 1] if part.first else known.parent,
            known.tables.token_ids[part.first : stop].reshape(-1),
            layers,
            known.tables.header.provenance,
            sections,
        )
        self._write(job, extent, part, part.count == len(known.keys))
        self.copied_bytes += sum(layer.nbytes for layer in layers)

    def _judge(self, job: _Job, unread: list[LeafPlace]) -> None:
        """After a read that failed: what the drive lost is left behind and the rest is looked at anew.

        Any other reason (no memory, too many open files) passes, and the source stays. Raises StorageError.
        """
        catalog, source = self._parts.catalog, job.source.header
        with catalog.lock:
            if not all(place in catalog.dead for place in unread):
                raise StorageError(f"{job.source.path.name} could not be read now; it is copied another time")
            left = sum(part.count for part in self._outline(source.sequence_id).useful(source.segment))
            dead = sum(
                LeafPlace(source.segment, part.record, part.first + leaf) in catalog.dead
                for part in job.wanted
                for leaf in range(part.count)
            )
            cut_off = sum(part.count for part in job.wanted) - left - dead  # behind a lost one: of no use
            if cut_off > 0:
                size = cut_off * job.layout.num_layers * job.layout.leaf_bytes
                tokens = cut_off * LEAF_TOKENS
                self._parts.indexing.losses.add(source.sequence_id, DAMAGE, tokens, size)
            catalog.dirty.add(source.sequence_id)
        self.abandon()

    def _sections(self, first: LeafPlace, tables: RecordTables, count: int) -> dict[int, Buffer | Pieces]:
        """Sections of `count` leaves from `first` on: all with a whole record, those by leaf with a part of it."""
        of_record = tables.header.num_leaves
        kept: dict[int, Buffer | Pieces] = {}
        for section in tables.sections:
            if count < of_record and not section.is_by_leaf:
                continue
            (_, data), fault = self._parts.sections.read_judged([first], section.kind, _LAST)[0]
            if fault not in (None, DAMAGED):
                raise StorageError(f"a section could not be read now ({fault})")
            if data is not None and section.tag is not None:
                kept[section.kind] = data
            elif data is not None:
                kept[section.kind] = part_of(section, data, of_record, first.leaf, count)
        return kept

    def _write(self, job: _Job, extent: Extent, part: LeafRange, is_whole: bool) -> None:
        parts, sequence_id = self._parts, job.source.header.sequence_id
        with parts.write_lock:
            need = parts.writers.check_room(sequence_id, job.layout, extent)
            if job.writer is None:
                job.writer = parts.writers.start_copy(sequence_id, job.layout)
                job.writer.segment.used_ns = job.source.used_ns
            segment = job.writer.segment
            segment.reserved_bytes = need  # appends meanwhile must not count on it
        entry, tables = job.writer.append(extent, grow_bytes=0)
        segment.reserved_bytes = 0
        place = LeafPlace(segment.header.segment, segment.num_records - 1, 0)
        known = Known(entry, tables.keys, extent.parent or NO_PARENT, tables)
        job.moved.append((Moved(part.record, part.first, part.count, place, is_whole), known))

    def _finish(self, job: _Job) -> None:
        parts, catalog, writer = self._parts, self._parts.catalog, job.writer
        if writer is not None:
            writer.seal()
            parts.disk.sync_directory(parts.path)
            segment = writer.segment
            segment.synced = segment.file_bytes
            parts.writers.count_closed(writer)
            rows = [
                RecordRow(moved.place.segment, moved.place.record, known.entry, known.keys, known.parent)
                for moved, known in job.moved
            ]
            with catalog.lock:
                parts.indexing.commit([segment], rows)
                for moved, known in job.moved:
                    catalog.add_record(segment, moved.place.record, known)
                catalog.forward(job.source.header.segment, [moved for moved, _ in job.moved])
        self._job = None
        self._remove(job.source)

    def _remove(self, segment: Segment) -> None:
        try:
            self._parts.remove([segment])
        except StorageError as error:
            self._parts.notices.append(str(error))
