"""The store: leaves in, leaves out, at the drive's speed; never a wrong one.

Puts the parts together: Writers write, the Catalog finds, Readers read, the Index remembers. Knows no
tensors, no text and no policy. Any number of threads may look up and read; appends are serialised.

Lock order: flush, write, catalog. No lock but flush is held while waiting for an fsync, none while reading.
"""

from __future__ import annotations

import threading
import time
from typing import TYPE_CHECKING, Self

from edgekv_storage.check.check import Problem, check_segment
from edgekv_storage.crypt import NO_LEAF_SECRET
from edgekv_storage.datadir import DataDir
from edgekv_storage.errors import Unwritable
from edgekv_storage.io.choice import IO_CHOICES, Decider, open_reader
from edgekv_storage.io.disk import OS_DISK
from edgekv_storage.io.faulty import FaultyReader
from edgekv_storage.segments.format import NO_PARENT, Layout
from edgekv_storage.segments.keys import leaf_keys
from edgekv_storage.segments.quarantine import Quarantine
from edgekv_storage.segments.record import Extent
from edgekv_storage.segments.recover import find_segments
from edgekv_storage.segments.sections import Pieces, plain_section_bytes
from edgekv_storage.space.eviction import PrefillCost
from edgekv_storage.space.space import Space
from edgekv_storage.store.catalog import Catalog, Known
from edgekv_storage.store.figures import StoreStats
from edgekv_storage.store.finding import Finding
from edgekv_storage.store.flusher import Flusher
from edgekv_storage.store.index import RecordRow
from edgekv_storage.store.indexing import Indexing
from edgekv_storage.store.parts import Parts
from edgekv_storage.store.paths import stored_paths
from edgekv_storage.store.readers import Readers
from edgekv_storage.store.sections import Sections
from edgekv_storage.store.writers import Writers, default_floor

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping, Sequence
    from pathlib import Path
    from types import TracebackType

    import numpy as np
    from numpy.typing import NDArray

    from edgekv_storage.crypt import Keys
    from edgekv_storage.io.disk import Buffer, Disk
    from edgekv_storage.io.protocol import Reader
    from edgekv_storage.space.losses import Loss
    from edgekv_storage.store.transfer import LeafPlace


class Store(Finding):
    """KV of one model in a data directory; segments of other models count and can be forgotten."""

    def __init__(
        self,
        disk: Disk,
        directory: DataDir,
        layout: Layout | None,
        writers: Writers,
        catalog: Catalog,
        keys: Keys | None,
        cost: PrefillCost,
    ) -> None:
        """Use `Store.open`."""
        self.layout = layout
        self.directory = directory
        self._disk = disk
        self._keys = keys
        self._cost = cost
        self._owns_directory = False
        self._catalog = catalog
        self._writers = writers
        self._write_lock = threading.RLock()
        self._flush_lock = threading.RLock()
        self._notices: list[str] = list(directory.notices)
        writers.notices = self._notices
        self._is_closed = False
        self._decider: Decider | None = None
        self._damaged = self._appended = self._appended_sections = 0

    @classmethod
    def open(
        cls,
        data_dir: Path | DataDir,
        layout: Layout | None,
        *,
        quota_bytes: int,
        free_floor_bytes: int | None = None,
        io: str = "auto",
        io_depth: int | None = None,
        keys: Keys | None = None,
        prefill_cost: PrefillCost | None = None,
        disk: Disk | None = None,
    ) -> Store:
        """Opens or creates the store, recovering what a crash left.

        A Path is locked here and given back by `close`; a DataDir stays the caller's. Without a layout
        nothing can be appended or found, but everything can be forgotten and checked. What lies above the
        quota is evicted, what is least likely to be missed first, and a notice says so; `prefill_cost` is
        what the model takes on this machine. With `keys` every segment is encrypted, and one that is not, or
        whose key is gone, goes to quarantine/; without, none is, and those that are stay unread. Raises
        Locked (go on without a disk tier), UnknownFormat, Unwritable; IoUnusable where `io` forces a way of
        reading that does not work here; ValueError for an unknown one.
        """
        if io not in IO_CHOICES:
            raise ValueError(f"no such I/O backend: {io}; one of {', '.join(IO_CHOICES)}")
        disk = disk or OS_DISK
        directory = data_dir if isinstance(data_dir, DataDir) else DataDir.open(data_dir)
        try:
            directory.require_writable()
            floor = default_floor(disk, directory.path) if free_floor_bytes is None else free_floor_bytes
            catalog = Catalog()
            writers = Writers(disk, directory.path, catalog, quota_bytes, floor, keys)
            store = cls(disk, directory, layout, writers, catalog, keys, prefill_cost or PrefillCost())
            store._start(io, io_depth)
        except OSError as error:
            if directory is not data_dir:
                directory.close()
            raise Unwritable(f"cannot use {directory.path}: {error.strerror}") from error
        except BaseException:
            if directory is not data_dir:
                directory.close()
            raise
        store._owns_directory = directory is not data_dir
        return store

    def _start(self, io: str, io_depth: int | None) -> None:
        path = self.directory.path
        self._indexing = Indexing(self._disk, path / "index.db", self._catalog, self._notices)
        rows, indexed = self._indexing.segment_rows, self._indexing.indexed
        found = find_segments(self._disk, path, rows, indexed, self._keys)
        self._notices += found.notices
        quarantine = Quarantine(self._disk, path)
        self._catalog.aside_bytes = quarantine.num_bytes
        self._indexing.take_stock(found)
        reader: Reader = FaultyReader()
        if self._disk.is_real:
            may_try = self.layout is not None
            reader, self._decider = open_reader(path, io, io_depth, self._notices.append, may_try=may_try)
        self._readers = Readers(self._catalog, self._on_damage, reader, self._disk)
        self._sections = Sections(self._readers)
        parts = self._parts = Parts(
            self._disk,
            path,
            quarantine,
            self.layout,
            self._catalog,
            self._writers,
            self._indexing,
            self._readers,
            self._sections,
            self._notices,
            self._flush_lock,
            self._write_lock,
        )
        self._space = Space(parts, self._cost)
        self._flusher = Flusher(self._flush, self.tidy, is_threaded=self._disk.is_real)
        self._space.fit_quota()

    # Writing

    def leaf_keys(
        self, sequence_id: bytes, namespace: bytes, token_ids: NDArray[np.int32], parent: bytes | None = None
    ) -> list[bytes]:
        """Chain keys of the full leaves of `token_ids` [T], `parent` being the key of the leaf before them.

        A chain may change its namespace anywhere: `parent` is a key of any. Keys depend on a secret of the
        conversation, whose key is made where there is none. Raises StorageError where that cannot be kept.
        """
        self._need_own_process()
        layout = self._need_layout()
        secret = NO_LEAF_SECRET if self._keys is None else self._keys.need(sequence_id).leaf_secret
        return leaf_keys(layout.fingerprint, namespace, token_ids, parent, secret)

    def append(
        self,
        sequence_id: bytes,
        keys: Sequence[bytes],
        parent: bytes | None,
        token_ids: NDArray[np.int32],
        payload: Sequence[Buffer],
        *,
        provenance: int = 0,
        sections: Mapping[int, Buffer | Pieces] | None = None,
    ) -> list[LeafPlace]:
        """Writes one extent and returns the places of its leaves, findable from now on.

        `keys`: of adjacent leaves, `parent` the key before them; `token_ids` [leaves * 16]; `payload`:
        buffers whose concatenation is layer by layer, leaf by leaf, not changed during the call; `sections`
        by kind, in one piece or as `Pieces`, lie in front of the KV. Raises ValueError for wrong sizes;
        QuotaExceeded, DiskFull, WriteFailed, StoreOff: nothing of the extent was kept, generation can go on.
        """
        layout = self._need_layout()
        extent = Extent(keys, parent, token_ids, payload, provenance, sections or {})
        self._load(sequence_id)
        with self._write_lock:
            self._need_open()
            segment, entry, tables = self._writers.append(sequence_id, layout, extent)
            number = segment.num_records - 1
            with self._catalog.lock:
                places = self._catalog.add_record(
                    segment, number, Known(entry, tables.keys, parent or NO_PARENT, tables)
                )
                row = RecordRow(segment.header.segment, number, entry, tables.keys, parent or NO_PARENT)
                self._indexing.appended(segment, row)
                self._indexing.losses.clear(sequence_id)
                self._catalog.touch(sequence_id, time.time_ns())
                self._appended += len(keys) * layout.num_layers * layout.leaf_bytes
                self._appended_sections += sum(map(plain_section_bytes, extent.sections.values()))
        self._flusher.wrote(entry.record_bytes)
        return places

    def flush(self) -> None:
        """Waits until what was appended is on the drive, then indexes it. Errors become notices."""
        self._need_own_process()
        self._flush()

    def _flush(self) -> bool:
        """Whether it could, or another try makes no sense."""
        with self._flush_lock:
            with self._write_lock:
                if self._is_closed:
                    return True
                try:
                    snapshot = self._writers.snapshot()
                except OSError as error:  # too many open files: nothing is lost, the next flush tries again
                    self._notices.append(f"what was written last is not on the drive yet ({error.strerror})")
                    return False
            failed = self._writers.sync(snapshot)
            with self._write_lock:
                self._notices += [self._writers.sync_failed(segment, error) for segment, error in failed]
            self._indexing.commit_synced()
        return True

    def forget(self, sequence_id: bytes) -> bool:
        """Deletes every byte kept of a sequence; False when there was none. Raises Unwritable.

        With encryption a quarantine/ that cannot be emptied is a notice: without its key nobody reads it.
        """
        self._need_own_process()
        with self._flush_lock, self._write_lock:
            self._need_open()
            self._space.stop()
            with self._catalog.lock:
                gone = self._catalog.files_of(sequence_id)
                self._indexing.losses.clear(sequence_id)
            self._parts.remove(gone)
            self._parts.empty_quarantine(must=self._keys is None)
        return bool(gone)

    def note_damage(self, places: Collection[LeafPlace], losses: Collection[Loss]) -> None:
        """Leaves that somebody else found damaged, and what is lost in all: for `check --fix`."""
        self._need_own_process()
        with self._catalog.lock:
            self._indexing.newly_dead |= {p for p in places if p.segment in self._catalog.segments}
            for loss in losses:
                self._indexing.losses.add(loss.sequence_id, loss.why, loss.num_tokens, loss.num_bytes)

    def make_room(self, num_bytes: int, keep: Collection[bytes] = ()) -> list[bytes]:
        """After QuotaExceeded or DiskFull: evicts to 90 % of that limit, or as far as `num_bytes` more need.

        Returns the sequences that lost something, whose places may be stale now. Raises Unwritable.
        """
        self._need_own_process()
        return self._space.make_room(num_bytes, keep)

    def evict(self, target_bytes: int, keep: Collection[bytes] = ()) -> list[bytes]:
        """Gives up what is least likely to be missed until `live_bytes` <= target; returns whose it was.

        Tails of sequences go, never of those in `keep`, and nothing where even all of it would not be enough.
        Raises Unwritable.
        """
        self._need_own_process()
        return self._space.evict(target_bytes, keep)

    def forgotten(self, sequence_id: bytes) -> list[Loss]:
        """What of a sequence was given up and why, the latest first; empty again once it was appended to."""
        with self._catalog.lock:
            return self._indexing.losses.of(sequence_id)

    def tidy(self) -> bool:
        """One small step of compaction, at idle; True while there is more to do."""
        self._need_own_process()
        with self._flush_lock:
            return not self._is_closed and self._space.tidy()

    def stored_paths(self, sequence_id: bytes, namespace: bytes) -> list[NDArray[np.int32]]:
        """Token ids [T] of every path stored of a sequence in one namespace, verified; see paths.py."""
        self._need_own_process()
        self._need_layout()
        with self._catalog.lock:
            self._need_open()
        return stored_paths(self._parts, sequence_id, lambda ids: self.leaf_keys(sequence_id, namespace, ids))

    def _on_damage(self, places: list[LeafPlace]) -> None:
        with self._catalog.lock:
            killed = self._catalog.mark_dead(places)
            self._indexing.died(killed)
            self._damaged += len(killed)

    # About the whole

    @property
    def io_name(self) -> str:
        """The reader in use, for `doctor`."""
        return self._readers.name

    @property
    def off_reason(self) -> str | None:
        """Why the disk tier turned itself off, None while it works."""
        return self._writers.off_reason

    @property
    def live_bytes(self) -> int:
        """Bytes that count against the quota."""
        with self._catalog.lock:
            return self._catalog.live_bytes

    def sequences(self) -> dict[bytes, int]:
        """Live bytes by sequence, the least recently used (appended to, looked up) first."""
        with self._catalog.lock:
            ids = self._catalog.sequences()
            return {i: sum(s.live_bytes for s in self._catalog.segments_of(i)) for i in ids}

    def stats(self) -> StoreStats:
        """Counters; any thread."""
        with self._catalog.lock:
            return StoreStats(
                self._catalog.live_bytes,
                self._writers.quota_bytes,
                len(self._catalog.segments),
                len(self._catalog.sequences()),
                self._writers.bytes_written,
                self._indexing.bytes_written,
                self._appended,
                self._appended_sections,
                self._readers.num_reads,
                self._readers.bytes_read,
                self._damaged,
                self._space.copied_bytes,
            )

    def take_notices(self) -> list[str]:
        """What the user should know and has not been told yet, one line each."""
        with self._catalog.lock:
            count = len(self._notices)  # shared with others, who add to it in other threads without this lock
            notices = self._notices[:count]
            del self._notices[:count]
        return notices

    def check(self) -> list[Problem]:
        """Reads every byte of every segment and verifies it; slow. Empty when all is well."""
        self._need_own_process()
        with self._catalog.lock:
            segments = [s for s in self._catalog.segments.values() if s.seal is not None]
        problems: list[Problem] = []
        for segment in segments:
            problems += check_segment(segment.path, end=segment.end, disk=self._disk, keys=self._keys)
        return problems

    def close(self) -> None:
        """Seals what is open, indexes it and stops all threads; harmless when called again, or after fork."""
        if not self.directory.is_own_process:
            return
        self._flusher.close()
        with self._flush_lock:
            with self._write_lock:
                if self._is_closed:
                    return
                self._space.stop()
                self._notices += self._writers.seal_all()
            self._indexing.commit_synced()
            with self._write_lock, self._catalog.lock:
                self._is_closed = True
                segments = list(self._catalog.segments.values())
        for segment in segments:  # sealing was a write, but not a use
            if segment.used_ns:
                segment.keep_use(self._disk)
        if self._decider is not None:
            self._decider.close()
        self._readers.close()
        self._indexing.close()
        if self._owns_directory:
            self.directory.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()
