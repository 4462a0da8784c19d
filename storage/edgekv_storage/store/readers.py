"""The reading half of the store: from places to bytes in the caller's memory, verified.

Knows the catalog, records and the reader; not how leaves came to be nor the index. Any thread.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from edgekv_storage.store.leafjobs import LeafJob, LeafRun, plan
from edgekv_storage.store.reading import FileCache, TablesRead
from edgekv_storage.store.transfer import LeafFault, LeafPlace, LeafRead, Transfer

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    import numpy as np
    from numpy.typing import NDArray

    from edgekv_storage.crypt import Seal
    from edgekv_storage.files import SegmentFile
    from edgekv_storage.io.disk import Disk
    from edgekv_storage.io.protocol import Reader, ReadJob
    from edgekv_storage.segments.format import Layout
    from edgekv_storage.segments.record import RecordTables
    from edgekv_storage.segments.sections import Section
    from edgekv_storage.segments.segment import Segment
    from edgekv_storage.store.catalog import Catalog, Known

_OWN_BYTES = 1 << 20  # more is not verified by a thread that could be reading on meanwhile
_TABLES_FIRST = -1  # without them nothing else can be asked for


class Spot(NamedTuple):
    """A record that can be read now, and what that needs."""

    segment: Segment
    file: SegmentFile
    seal: Seal
    known: Known
    tables: RecordTables

    def holds(self, section: Section) -> bool:
        """Whether the section ends within the file: tables that anybody wrote may claim anything."""
        return self.known.entry.offset + section.offset + section.num_bytes <= self.segment.file_bytes


class Readers:
    """`on_damage` is told, from any thread, which leaves must not be found again."""

    def __init__(
        self,
        catalog: Catalog,
        on_damage: Callable[[list[LeafPlace]], None],
        reader: Reader,
        disk: Disk,
    ) -> None:
        self.files = FileCache(use_direct=reader.use_direct, disk=disk)
        self.num_reads = 0
        self.bytes_read = 0
        self._catalog = catalog
        self._on_damage = on_damage
        self._reader = reader

    @property
    def name(self) -> str:
        """What `doctor` shows."""
        return self._reader.name

    def close(self) -> None:
        """Waits for what is in flight."""
        self._reader.close()
        self.files.close()

    def load_tables(self, places: Sequence[LeafPlace]) -> None:
        """Reads the tables of records not used before, all at once."""
        wanted: dict[tuple[int, int], TablesRead] = {}
        with self._catalog.lock:
            for place in places:
                segment = self._catalog.segments.get(place.segment)
                known = self._catalog.record(place.segment, place.record)
                if segment is None or segment.seal is None or known is None or known.tables is not None:
                    continue
                if place[:2] not in wanted:
                    file = self.files.get(segment)
                    wanted[place[:2]] = TablesRead(file, segment.header, place.record, known, segment.seal)
        if not wanted:
            return
        self._reader.submit(list(wanted.values()), _TABLES_FIRST)
        for (segment_id, record), read in wanted.items():
            if not read.wait():
                self._on_damage([LeafPlace(segment_id, record, i) for i in range(len(read.known.keys))])

    def count_same(self, places: Sequence[LeafPlace], ids: NDArray[np.int32], keys: Sequence[bytes]) -> int:
        """How many leaves of `places` from the first on hold just these ids [leaves, 16]."""
        at = 0
        while at < len(places):
            end = at + 1
            while end < len(places) and places[end - 1].precedes(places[end]):
                end += 1
            good = self._count_run(places[at], ids[at:end], keys[at:end])
            if good < end - at:
                return at + good
            at = end
        return at

    def _count_run(self, place: LeafPlace, ids: NDArray[np.int32], keys: Sequence[bytes]) -> int:
        """The same for neighbours in one record, by the record itself."""
        known = self._catalog.record(place.segment, place.record)
        if known is None or known.tables is None:
            return 0
        leaves = slice(place.leaf, place.leaf + len(ids))
        if known.tables.keys[leaves] != list(keys):
            return 0
        same = (known.tables.token_ids[leaves] == ids).all(axis=1)
        return len(ids) if same.all() else int(same.argmin())

    def read(
        self, requests: Sequence[LeafRead], layout: Layout, priority: int, *, waits: bool = False
    ) -> Transfer:
        """Starts a transfer. Raises StoreClosed; ValueError for what cannot be a leaf run."""
        if self._catalog.has_moved:
            with self._catalog.lock:
                requests = [r._replace(place=self._catalog.resolve(r.place, r.num_leaves)) for r in requests]
        self.load_tables([request.place for request in requests])
        runs: list[LeafRun] = []
        faults: list[LeafFault] = []
        for number, request in enumerate(requests):
            run = self._resolve(number, request, layout)
            if run is None:
                lost = range(request.num_leaves)
                faults += [LeafFault(number, leaf, "not in the store") for leaf in lost]
            else:
                runs.append(run)
        groups = plan(runs)
        transfer = Transfer(len(groups), faults)
        jobs = [LeafJob(group, transfer, self._on_damage) for group in groups]
        num_bytes = sum(len(run.out) for run in runs)
        if waits and num_bytes <= _OWN_BYTES:
            self._count(jobs, num_bytes)
            self._reader.run(jobs)
        else:
            self.submit(jobs, num_bytes, priority)
        return transfer

    def submit(self, jobs: Sequence[ReadJob], num_bytes: int, priority: int) -> None:
        """Hands jobs to the reader and counts them. Raises StoreClosed."""
        self._count(jobs, num_bytes)
        self._reader.submit(jobs, priority)

    def _count(self, jobs: Sequence[ReadJob], num_bytes: int) -> None:
        with self._catalog.lock:
            self.num_reads += len(jobs)
            self.bytes_read += num_bytes

    def resolve(self, places: Sequence[LeafPlace]) -> list[LeafPlace]:
        """Where the leaves are now."""
        if not self._catalog.has_moved:
            return list(places)
        with self._catalog.lock:
            return [self._catalog.resolve(place) for place in places]

    def record_of(self, place: LeafPlace) -> LeafPlace | None:
        """Where the record that held the leaf is now; None where only some of its leaves were copied."""
        with self._catalog.lock:
            return self._catalog.resolve_whole(place)

    def spot(self, place: LeafPlace) -> Spot | None:
        """None where the record is gone, unreadable, or its tables were not loaded."""
        with self._catalog.lock:
            segment = self._catalog.segments.get(place.segment)
            known = self._catalog.record(place.segment, place.record)
            if segment is None or segment.seal is None or known is None or known.tables is None:
                return None
            return Spot(segment, self.files.get(segment), segment.seal, known, known.tables)

    def _resolve(self, number: int, request: LeafRead, layout: Layout) -> LeafRun | None:
        place, layer, count, out = request
        spot = self.spot(place)
        if spot is None:
            return None
        segment, file, seal, known, tables = spot
        if not (0 <= layer < layout.num_layers and 0 <= place.leaf < place.leaf + count <= len(known.keys)):
            end = place.leaf + count
            raise ValueError(f"layer {layer}, leaves {place.leaf} to {end} are not in the record")
        out = out if out.format == "B" and out.ndim == 1 else out.cast("B")
        if out.readonly or len(out) != count * layout.leaf_bytes:
            needed = count * layout.leaf_bytes
            raise ValueError(f"{count} leaves need {needed} writable bytes, not {len(out)}")
        return LeafRun(
            file,
            known.entry.offset + tables.kv_offset(layer, place.leaf),
            out,
            layout.leaf_bytes,
            tables.tags_of(layer, place.leaf, count),
            number,
            0,
            place,
            segment.synced < known.entry.offset + known.entry.record_bytes,
            seal,
            tables.context,
            tables.leaf_index(layer, place.leaf),
        )
