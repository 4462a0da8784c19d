"""What the store asks of a reader, and what a reader knows of a job. Neither knows leaves or checksums."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from collections.abc import Sequence

    from edgekv_storage.files import SegmentFile


class ReadJob(ABC):
    """One contiguous read of a file into buffers, filled in order.

    `buffered` asks for the page cache: the bytes may not be on the drive yet.
    """

    __slots__ = ("buffered", "buffers", "file", "offset")

    def __init__(
        self, file: SegmentFile, offset: int, buffers: list[memoryview], *, buffered: bool = False
    ) -> None:
        self.file = file
        self.offset = offset
        self.buffers = buffers
        self.buffered = buffered

    @abstractmethod
    def is_wanted(self) -> bool:
        """False: skip the read and finish (asked just before it starts)."""

    @abstractmethod
    def finish(self, error: OSError | None) -> None:
        """Called exactly once, from a reader's thread, when the buffers will not be touched any more."""


class Reader(Protocol):
    """Carries out jobs, lowest priority number first, equal ones in order of submission."""

    @property
    def name(self) -> str:
        """What `doctor` shows."""
        ...

    def submit(self, jobs: Sequence[ReadJob], priority: int) -> None:
        """Queues jobs and returns. Raises StoreClosed."""
        ...

    def close(self) -> None:
        """Finishes what has started, fails what has not, and waits for both."""
        ...
