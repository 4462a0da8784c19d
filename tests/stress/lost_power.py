"""Plays a trace of disk_shim.c up to any moment and makes the states a power loss may leave.

The rules, as strict as a drive and a file system may be: what was written to a file before its last sync is
there. Of later writes any subset of 512-byte sectors may be, of later changes of its size any; of names made,
removed and renamed since their directory's last sync, for each name any number from the first on. Knows traces
and bytes; nothing of what is in the files.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass, field
from enum import IntEnum
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import random
    from collections.abc import Iterator
    from pathlib import Path

_ENTRY = struct.Struct("<IIQQQ")
_SECTOR = 512


class What(IntEnum):
    """As in disk_shim.c."""

    CREATE = 1
    WRITE = 2
    TRUNCATE = 3
    SYNC = 4
    RENAME = 5
    UNLINK = 6
    MARK = 7
    OPEN = 8


@dataclass(frozen=True)
class Event:
    """One entry of a trace. `data`: bytes written, a mark, or a rename's old name."""

    what: What
    file: int
    offset: int
    name: str
    data: bytes


def read_trace(path: Path) -> Iterator[Event]:
    """In order."""
    trace, at = path.read_bytes(), 0
    while at + _ENTRY.size <= len(trace):
        what, name_bytes, file, offset, num_bytes = _ENTRY.unpack_from(trace, at)
        at += _ENTRY.size
        name = trace[at : at + name_bytes].decode()
        at += name_bytes
        yield Event(What(what), file, offset, name, trace[at : at + num_bytes])
        at += num_bytes


@dataclass
class _File:
    """`synced`: what no power loss takes away; `pending`: (offset, data), or (size, None) for a truncation."""

    synced: bytearray = field(default_factory=bytearray)
    pending: list[tuple[int, bytes | None]] = field(default_factory=list)

    def sync(self) -> None:
        for offset, data in self.pending:
            _apply(self.synced, offset, data)
        self.pending.clear()


def _apply(content: bytearray, offset: int, data: bytes | None) -> None:
    if data is None:
        del content[offset:]
        content.extend(bytes(offset - len(content)))
        return
    content.extend(bytes(max(0, offset - len(content))))
    content[offset : offset + len(data)] = data


class Disk:
    """A directory while a trace is played. Sub-directories are not told apart from it."""

    def __init__(self, root: Path) -> None:
        self._root = str(root)
        self._now: dict[int, _File] = {}  # by inode number, which is given again
        self._synced_names: dict[str, _File] = {}
        self._pending_names: list[tuple[str, _File | None]] = []
        self._names: dict[str, _File] = {}

    def play(self, event: Event) -> None:
        """Applies one change."""
        if event.what in (What.CREATE, What.OPEN):
            if event.what is What.CREATE:
                self._now[event.file] = _File()
                self._name(event.name, self._now[event.file])
        elif event.what is What.SYNC and event.file not in self._now:  # the directory itself
            for name, file in self._pending_names:
                _set(self._synced_names, name, file)
            self._pending_names.clear()
        elif event.what is What.SYNC:
            self._now[event.file].sync()
        elif event.what is What.WRITE and event.file in self._now:
            self._now[event.file].pending.append((event.offset, event.data))
        elif event.what is What.TRUNCATE and event.file in self._now:
            self._now[event.file].pending.append((event.offset, None))
        elif event.what is What.UNLINK:
            self._name(event.name, None)
        elif event.what is What.RENAME:
            moved = self._names.get(event.data.decode())
            self._name(event.name, moved)
            self._name(event.data.decode(), None)

    def _name(self, name: str, file: _File | None) -> None:
        _set(self._names, name, file)
        self._pending_names.append((name, file))

    def lose_power(self, rng: random.Random) -> dict[str, bytes]:
        """One legal state, by name relative to the directory."""
        survival = rng.choice((0.0, 0.5, 0.9, 1.0, rng.random()))
        tears = rng.random() < 0.7
        names = dict(self._synced_names)
        stopped: set[str] = set()
        for name, file in self._pending_names:
            if name not in stopped and rng.random() < survival:
                _set(names, name, file)
            else:
                stopped.add(name)
        return {
            name.removeprefix(self._root).lstrip("/"): _survivor(file, rng, survival, tears=tears)
            for name, file in names.items()
        }


def _set(names: dict[str, _File], name: str, file: _File | None) -> None:
    if file is None:
        names.pop(name, None)
    else:
        names[name] = file


def _survivor(file: _File, rng: random.Random, survival: float, *, tears: bool) -> bytes:
    content = bytearray(file.synced)
    for offset, data in file.pending:
        if data is None or not tears:
            if rng.random() < survival:
                _apply(content, offset, data)
            continue
        for at in range(offset - offset % _SECTOR, offset + len(data), _SECTOR):
            if rng.random() < survival:
                start, stop = max(at, offset), min(at + _SECTOR, offset + len(data))
                _apply(content, start, data[start - offset : stop - offset])
    return bytes(content)
