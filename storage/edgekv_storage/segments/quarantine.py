"""The folder quarantine/: segments of ours that cannot be believed, kept until something is forgotten.

Knows names; opens no file. Somebody may have put anything in its place or into it: only a real folder is used,
and only plain files with a segment's name are ever deleted.
"""

from __future__ import annotations

import contextlib
import errno
import re
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pathlib import Path

    from edgekv_storage.io.disk import Disk, Item

SEGMENT_NAME = re.compile(r"seg-[0-9a-f]{16}-[0-9a-f]{16}\.kv")


class Quarantine:
    """Of one data directory. The lock of the directory is held by whoever changes anything."""

    def __init__(self, disk: Disk, directory: Path) -> None:
        self._disk = disk
        self.path = directory / "quarantine"

    def take(self, path: Path) -> None:
        """Moves a segment here. Raises OSError, ENOTDIR where something else stands in the folder's place."""
        if not self._disk.is_directory(self.path):
            with contextlib.suppress(FileExistsError):
                self._disk.make_directory(self.path)
            self._need_directory()
        self._disk.rename(path, self.path / path.name)

    def items(self) -> list[Item]:
        """The segments in it, by name. Raises OSError."""
        if not self._disk.is_directory(self.path):
            return []
        return [i for i in self._disk.items(self.path) if i.is_file and SEGMENT_NAME.fullmatch(i.name)]

    @property
    def num_bytes(self) -> int:
        """Of the segments in it, which count against the limit; 0 where it cannot be looked at."""
        try:
            return sum(item.num_bytes for item in self.items())
        except OSError:
            return 0

    def empty(self) -> int:
        """Deletes the segments in it; how many. Goes on after one that fails, then raises OSError."""
        failure: OSError | None = None
        items = self.items()
        for item in items:
            try:
                self._disk.unlink(self.path / item.name)
            except OSError as error:
                failure = failure or error
        if items:
            self._disk.sync_directory(self.path)
        if failure is not None:
            raise failure
        return len(items)

    def _need_directory(self) -> None:
        if not self._disk.is_directory(self.path):
            raise NotADirectoryError(errno.ENOTDIR, "quarantine is no folder of ours", str(self.path))
