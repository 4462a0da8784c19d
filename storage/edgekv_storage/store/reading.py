"""Small helpers of reading: open files by segment, and the read of one record's tables.

Knows files and records; not what is looked for.
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from typing import TYPE_CHECKING
from weakref import WeakValueDictionary

from edgekv_storage.files import SegmentFile
from edgekv_storage.io.disk import OS_DISK
from edgekv_storage.io.protocol import ReadJob
from edgekv_storage.segments.format import RECORD_BYTES, Malformed, max_table_bytes
from edgekv_storage.segments.record import RecordTables, parse_tables
from edgekv_storage.store.leafjobs import LOST

if TYPE_CHECKING:
    from edgekv_storage.crypt import Seal
    from edgekv_storage.io.disk import Disk
    from edgekv_storage.segments.format import SegmentHeader
    from edgekv_storage.segments.segment import Segment
    from edgekv_storage.store.catalog import Known

_MAX_FILES = 128  # two descriptors each, well below the usual limit of 1,024


class FileCache:
    """Open segments, the least recently used let go; readers in flight keep theirs open."""

    def __init__(self, *, use_direct: bool, disk: Disk = OS_DISK) -> None:
        self._disk = disk
        self._use_direct = use_direct
        self._lock = threading.Lock()
        self._files: OrderedDict[int, SegmentFile] = OrderedDict()
        self._alive: WeakValueDictionary[int, SegmentFile] = WeakValueDictionary()

    def get(self, segment: Segment) -> SegmentFile:
        """The segment's file; opened by its first use."""
        key = segment.header.segment
        with self._lock:
            file = self._files.get(key)
            if file is None:
                file = self._alive.get(key) or SegmentFile(
                    segment.path, use_direct=self._use_direct, disk=self._disk
                )
                self._files[key] = self._alive[key] = file
                if len(self._files) > _MAX_FILES:
                    self._files.popitem(last=False)
            else:
                self._files.move_to_end(key)
            return file

    def drop(self, segment_id: int) -> None:
        """Lets go of a segment that is about to be deleted; reads of it that were asked for still succeed."""
        with self._lock:
            self._files.pop(segment_id, None)
            file = self._alive.get(segment_id)
        if file is not None:
            file.hold()

    def close(self) -> None:
        """Lets go of everything."""
        with self._lock:
            self._files.clear()


class TablesRead(ReadJob):
    """Reads and verifies the tables of one record; `wait` says whether the record is damaged."""

    __slots__ = ("_data", "_done", "_error", "_header", "_num_bytes", "_number", "_seal", "known")

    def __init__(
        self, file: SegmentFile, header: SegmentHeader, number: int, known: Known, seal: Seal
    ) -> None:
        tables = min(known.entry.table_bytes, max_table_bytes(header.layout, len(known.keys)))
        self._num_bytes = RECORD_BYTES + tables  # index.db may say anything; it gets no more memory than this
        self._data = bytearray()
        super().__init__(file, known.entry.offset, buffered=True)
        self._header = header
        self._number = number
        self._seal = seal
        self._error: OSError | None = None
        self._done = threading.Event()
        self.known = known

    def begin(self) -> list[memoryview]:
        """Its own memory, always."""
        self._data = bytearray(self._num_bytes)
        return [memoryview(self._data)]

    def finish(self, error: OSError | None) -> None:
        """Wakes the waiter, in whose thread the tables are verified."""
        self._error = error
        self._done.set()

    def wait(self) -> bool:
        """False when the record cannot be believed, now and later.

        True without `known.tables` where only this read failed (too many open files, a closed store): the
        leaves are not found this time, and another time they are.
        """
        self._done.wait()
        if self._error is not None:
            return self._error.errno not in LOST
        try:
            tables: RecordTables = parse_tables(bytes(self._data), self._header, self._number, self._seal)
        except Malformed:
            return False
        if tables.keys != self.known.keys or tables.entry(self.offset) != self.known.entry:
            return False
        self.known.tables = tables
        return True
