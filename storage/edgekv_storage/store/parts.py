"""What a store is made of, for those of its helpers that need most of it. Knows nothing itself."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from edgekv_storage.errors import Unwritable

if TYPE_CHECKING:
    import threading
    from pathlib import Path

    from edgekv_storage.io.disk import Disk
    from edgekv_storage.segments.format import Layout
    from edgekv_storage.segments.quarantine import Quarantine
    from edgekv_storage.segments.segment import Segment
    from edgekv_storage.store.catalog import Catalog
    from edgekv_storage.store.indexing import Indexing
    from edgekv_storage.store.readers import Readers
    from edgekv_storage.store.sections import Sections
    from edgekv_storage.store.writers import Writers


@dataclass(frozen=True, slots=True)
class Parts:
    """Lock order: flush, write, catalog."""

    disk: Disk
    path: Path
    quarantine: Quarantine
    layout: Layout | None
    catalog: Catalog
    writers: Writers
    indexing: Indexing
    readers: Readers
    sections: Sections
    notices: list[str]
    flush_lock: threading.RLock
    write_lock: threading.RLock

    def remove(self, segments: list[Segment]) -> None:
        """Deletes segments: not found, then no file, then no rows. Raises Unwritable.

        Files before rows: a crash in between leaves rows without files, not files that come back. A file that
        stays is counted until another attempt removes it.
        """
        with self.flush_lock, self.write_lock:
            with self.catalog.lock:
                for segment in segments:
                    self.writers.discard(segment)
                self.catalog.remove(segments)
            try:
                self._unlink(segments)
            except OSError as error:
                raise Unwritable(
                    f"files in {self.path} could not be removed ({error.strerror}): remove its seg-*.kv"
                ) from error
            finally:
                with self.catalog.lock:
                    self.indexing.forget(segments)

    def _unlink(self, segments: list[Segment]) -> None:
        """Goes on after a file that cannot be removed, then raises its OSError."""
        failure: OSError | None = None
        for segment in segments:
            self.readers.files.drop(segment.header.segment)
            try:
                self.disk.unlink(segment.path)
            except OSError as error:
                failure = failure or error
            else:
                with self.catalog.lock:
                    self.catalog.leaving.pop(segment.header.segment, None)
        if segments:
            self.disk.sync_directory(self.path)
        if failure is not None:
            raise failure

    def empty_quarantine(self, *, must: bool = True) -> int:
        """What lies there may belong to anyone and cannot say so; how many files.

        Raises Unwritable; where it need not be, that is a notice, and the next attempt is the next forget's.
        """
        try:
            return self.quarantine.empty()
        except OSError as error:
            reason = f"{self.quarantine.path} could not be emptied ({error.strerror}): remove it"
            if must:
                raise Unwritable(reason) from error
            self.notices.append(reason)
            return 0
        finally:
            with self.catalog.lock:
                self.catalog.aside_bytes = self.quarantine.num_bytes
