"""What the store asks of a reader, and what a reader knows of a job. Neither knows leaves or checksums."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from collections.abc import Sequence

    from edgekv_storage.files import SegmentFile


class ReadJob(ABC):
    """One contiguous read of a file from `offset` on.

    `buffered` asks for the page cache: the bytes may not be on the drive yet.
    """

    __slots__ = ("buffered", "file", "offset")

    def __init__(self, file: SegmentFile, offset: int, *, buffered: bool = False) -> None:
        self.file = file
        self.offset = offset
        self.buffered = buffered

    @abstractmethod
    def begin(self) -> list[memoryview] | None:
        """Writable memory to be filled in order, or None: no longer wanted.

        Called once at most, from a reader's thread, just before the read starts: memory taken here is held by
        reads in flight only, however many wait. Raises OSError; `finish` is called then too.
        """

    @abstractmethod
    def finish(self, error: OSError | None) -> None:
        """Called exactly once, from a reader's thread, when the memory will not be touched any more.

        `error` is ECANCELED where `begin` returned None or was not reached.
        """


class Reader(Protocol):
    """Carries out jobs, lowest priority number first, equal ones in order of submission."""

    @property
    def name(self) -> str:
        """What `doctor` shows."""
        ...

    @property
    def use_direct(self) -> bool:
        """Whether files are to be opened for direct reads too."""
        ...

    def submit(self, jobs: Sequence[ReadJob], priority: int) -> None:
        """Queues jobs and returns. Raises StoreClosed."""
        ...

    def run(self, jobs: Sequence[ReadJob]) -> None:
        """Carries out jobs that the caller waits for, before all others; it may return before they are done.

        Raises StoreClosed.
        """
        ...

    def close(self) -> None:
        """Finishes what has started, fails what has not, and waits for both."""
        ...
