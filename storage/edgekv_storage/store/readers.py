"""The reading half of the store: from places to bytes in the caller's memory, verified.

Knows the catalog, records and the reader; not how leaves came to be nor the index. Any thread.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from edgekv_storage.store.leafjobs import LeafJob, LeafRun, plan
from edgekv_storage.store.reading import FileCache, TablesRead
from edgekv_storage.store.transfer import LeafFault, LeafPlace, LeafRead, Transfer

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    import numpy as np
    from numpy.typing import NDArray

    from edgekv_storage.io.disk import Disk
    from edgekv_storage.io.protocol import Reader
    from edgekv_storage.segments.format import Layout
    from edgekv_storage.store.catalog import Catalog

_TABLES_FIRST = -1  # without them nothing else can be asked for


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

    def read(self, requests: Sequence[LeafRead], layout: Layout, priority: int) -> Transfer:
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
        with self._catalog.lock:
            self.num_reads += len(groups)
            self.bytes_read += sum(len(run.out) for run in runs)
        self._reader.submit([LeafJob(group, transfer, self._on_damage) for group in groups], priority)
        return transfer

    def _resolve(self, number: int, request: LeafRead, layout: Layout) -> LeafRun | None:
        place, layer, count, out = request
        with self._catalog.lock:
            segment = self._catalog.segments.get(place.segment)
            known = self._catalog.record(place.segment, place.record)
            file = self.files.get(segment) if segment is not None else None
        if file is None or segment is None or segment.seal is None or known is None or known.tables is None:
            return None
        if not (0 <= layer < layout.num_layers and 0 <= place.leaf < place.leaf + count <= len(known.keys)):
            end = place.leaf + count
            raise ValueError(f"layer {layer}, leaves {place.leaf} to {end} are not in the record")
        out = out if out.format == "B" and out.ndim == 1 else out.cast("B")
        if out.readonly or len(out) != count * layout.leaf_bytes:
            needed = count * layout.leaf_bytes
            raise ValueError(f"{count} leaves need {needed} writable bytes, not {len(out)}")
        return LeafRun(
            file,
            known.entry.offset + known.tables.kv_offset(layer, place.leaf),
            out,
            layout.leaf_bytes,
            known.tables.tags_of(layer, place.leaf, count),
            number,
            0,
            place,
            segment.synced < known.entry.offset + known.entry.record_bytes,
            segment.seal,
            known.tables.context,
            known.tables.leaf_index(layer, place.leaf),
        )

    def read_section(self, place: LeafPlace, kind: int) -> bytes | None:
        """A typed section of the record that holds `place`; None where it has none or it is damaged."""
        with self._catalog.lock:
            place = self._catalog.resolve(place)
        self.load_tables([place])
        with self._catalog.lock:
            segment = self._catalog.segments.get(place.segment)
            known = self._catalog.record(place.segment, place.record)
        if segment is None or segment.seal is None or known is None or known.tables is None:
            return None
        found = known.tables.section(kind)
        if found is None:
            return None
        number, section = found
        file = self.files.get(segment)
        try:
            data = file.read(section.num_bytes, known.entry.offset + section.offset)
        except OSError:
            return None
        return known.tables.open_section(segment.seal, number, data)
