"""A simulated disk in memory that fails the way disks do: one seed reproduces a run.

Knows which bytes were synced, and what a power loss may leave of the others; not the format. Nothing runs in
the background on it: a store on a simulated disk flushes and tidies when it is told to.
"""
# ruff: noqa: D102  (the protocol says what each method does)

from __future__ import annotations

import errno
import os
import random
import sqlite3
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from edgekv_storage.io.disk import Disk, Item, Room

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from edgekv_storage.io.disk import Buffer
    from edgekv_storage.io.protocol import ReadJob

SECTOR = 512
SHORT = -1
"""Instead of an errno: the call does half of what was asked for."""


class PowerLoss(BaseException):
    """The simulated machine is off: only `crash` may follow. Not an Exception: nothing may catch it."""


@dataclass(slots=True)
class _File:
    """`data` is what reads see, `durable` what is surely on the drive, `pending` what came between them."""

    data: bytearray = field(default_factory=bytearray)
    durable: bytearray = field(default_factory=bytearray)
    pending: list[tuple[int, bytes | None]] = field(default_factory=list)  # None: cut at that offset
    reserved: int = 0
    used_ns: int = 0


@dataclass(frozen=True, slots=True)
class Fault:
    """Calls number `first` to `last` (from 0, of the named methods or of all) fail with `code`."""

    first: int
    last: int
    code: int
    only: frozenset[str] = frozenset()


class _Memory(sqlite3.Connection):
    """An index whose last state the disk keeps when it is closed."""

    disk: FaultyDisk
    name: str

    def close(self) -> None:
        self.disk.keep_database(self.name, self)
        super().close()


class FaultyDisk(Disk):
    """One thread. `calls` counts what may fail; `power_off_at` is the call at which the machine goes off."""

    is_real = False

    def __init__(
        self,
        seed: int = 0,
        *,
        faults: Sequence[Fault] = (),
        power_off_at: int | None = None,
        capacity_bytes: int = 1 << 40,
        lies_about_sync: bool = False,
    ) -> None:
        self.random = random.Random(seed)  # noqa: S311  a simulation has to be repeatable
        self.faults = list(faults)
        self.power_off_at = power_off_at
        self.capacity_bytes = capacity_bytes
        self.lies_about_sync = lies_about_sync
        self.calls = 0
        self.bytes_written = 0
        self._is_off = self._is_gone = False
        self._names: dict[Path, _File] = {}
        self._durable_names: dict[Path, _File] = {}
        self._pending_names: list[tuple[Path, _File | None]] = []  # None: the name is removed
        self._open: dict[int, _File] = {}
        self._next = 1 << 20  # no number of a real file
        self._databases: dict[str, list[bytes]] = {}
        self._connections: dict[str, _Memory] = {}

    # What goes wrong

    def crash(self, seed: int) -> FaultyDisk:
        """What a power loss now leaves: synced bytes, and a legal part of the others. This one stays as it is."""
        after = FaultyDisk(seed, capacity_bytes=self.capacity_bytes, lies_about_sync=self.lies_about_sync)
        rng = after.random
        names = dict(self._durable_names)
        keep = rng.choice((0.0, 0.5, 0.9, 1.0))
        for path, file in self._pending_names:
            if rng.random() < keep:
                if file is None:
                    names.pop(path, None)
                else:
                    names[path] = file
        for path, file in names.items():
            data = _survivor(file, rng)
            after._names[path] = _File(data, bytearray(data), used_ns=file.used_ns)
        after._durable_names = dict(after._names)
        for name, images in self._databases.items():
            live = self._connections.get(name)
            states = images + ([live.serialize()] if live is not None else [])
            kept = rng.choice([*states[-3:], None])  # an older state, or a lost file
            if kept is not None:
                after._databases[name] = [kept]
        return after

    def vanish(self) -> None:
        """The directory is gone (unplugged, unmounted); what is open stays open."""
        self._is_gone = True

    def _step(self, name: str) -> int | None:
        """Counts a call. Raises PowerLoss or the planned OSError; SHORT for a call to be cut short."""
        if self._is_off or self.calls == self.power_off_at:
            self._is_off = True
            raise PowerLoss
        number, self.calls = self.calls, self.calls + 1
        for fault in self.faults:
            if fault.first <= number <= fault.last and (not fault.only or name in fault.only):
                if fault.code == SHORT:
                    return SHORT
                raise OSError(fault.code, os.strerror(fault.code))
        return None

    def _need_there(self, path: Path) -> None:
        if self._is_gone:
            raise FileNotFoundError(errno.ENOENT, "the directory is gone", str(path))

    # Files

    def open(self, path: Path, flags: int) -> int:
        self._step("open")
        self._need_there(path)
        file = self._names.get(path)
        if file is None:
            if not flags & os.O_CREAT:
                raise FileNotFoundError(errno.ENOENT, "no such file", str(path))
            file = self._names[path] = _File()
            self._pending_names.append((path, file))
        elif flags & os.O_EXCL:
            raise FileExistsError(errno.EEXIST, "the file exists", str(path))
        self._next += 1
        self._open[self._next] = file
        return self._next

    def open_reading(self, path: Path, *, direct: bool) -> int:
        if direct:
            raise OSError(errno.EINVAL, "no direct reads here")
        return self.open(path, os.O_RDONLY)

    def close(self, fd: int) -> None:
        self._open.pop(fd, None)

    def dup(self, fd: int) -> int:
        self._next += 1
        self._open[self._next] = self._open[fd]
        return self._next

    def pread(self, fd: int, num_bytes: int, offset: int) -> bytes:
        count = (num_bytes + 1) // 2 if self._step("read") == SHORT else num_bytes
        return bytes(self._open[fd].data[offset : offset + count])

    def preadv(self, fd: int, buffers: Sequence[memoryview], offset: int) -> int:
        most = sum(len(b) for b in buffers)
        if self._step("read") == SHORT:
            most = (most + 1) // 2
        data = memoryview(self._open[fd].data)[offset : offset + most]
        done = 0
        for buffer in buffers:
            part = data[done : done + len(buffer)]
            buffer[: len(part)] = part
            done += len(part)
        data.release()
        return done

    def pwritev(self, fd: int, buffers: Sequence[Buffer], offset: int) -> int:
        cut = self._step("write") == SHORT
        data = b"".join(bytes(b) for b in buffers)
        if cut:
            data = data[: (len(data) + 1) // 2]
        file = self._open[fd]
        room = self._free() + max(0, file.reserved - len(file.data))
        if offset + len(data) > len(file.data) + room:
            data = data[: max(0, len(file.data) + room - offset)]
            if not data:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        if len(file.data) < offset:
            file.data.extend(bytes(offset - len(file.data)))
        file.data[offset : offset + len(data)] = data
        file.pending.append((offset, data))
        self.bytes_written += len(data)
        return len(data)

    def reserve(self, fd: int, offset: int, num_bytes: int) -> bool:
        self._step("reserve")
        file = self._open[fd]
        if offset + num_bytes - max(file.reserved, len(file.data)) > self._free():
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        file.reserved = max(file.reserved, offset + num_bytes)
        return True

    def truncate(self, fd: int, num_bytes: int) -> None:
        self._step("truncate")
        file = self._open[fd]
        del file.data[num_bytes:]
        file.data.extend(bytes(num_bytes - len(file.data)))
        file.reserved = 0
        file.pending.append((num_bytes, None))

    def sync(self, fd: int) -> None:
        file = self._open[fd]
        try:
            self._step("sync")
        except OSError:
            if self.random.random() < 0.7:  # the kernel called the pages clean: they never reach the drive
                file.pending.clear()
            raise
        if not self.lies_about_sync:
            file.durable = bytearray(file.data)
            file.pending.clear()
        for name, connection in self._connections.items():
            if self.random.random() < 0.3:
                self._databases.setdefault(name, []).append(connection.serialize())

    def start_sync(self, fd: int, offset: int, num_bytes: int) -> None:
        pass  # any of the unsynced bytes may be on the drive at a power loss anyway

    def size(self, fd: int) -> int:
        self._step("stat")
        return len(self._open[fd].data)

    def _free(self) -> int:
        return self.capacity_bytes - sum(max(len(f.data), f.reserved) for f in self._names.values())

    # Names

    def sync_directory(self, path: Path) -> None:
        self._step("sync_directory")
        self._need_there(path)
        if not self.lies_about_sync:
            self._durable_names = dict(self._names)
            self._pending_names.clear()

    def rename(self, old: Path, new: Path) -> None:
        self._step("rename")
        self._need_there(old)
        file = self._names[new] = self._names.pop(old)
        self._pending_names += [(new, file), (old, None)]

    def unlink(self, path: Path) -> None:
        self._step("unlink")
        self._need_there(path)
        if self._names.pop(path, None) is not None:
            self._pending_names.append((path, None))

    def make_directory(self, path: Path) -> None:
        self._step("make_directory")
        self._need_there(path)

    def is_directory(self, path: Path) -> bool:
        return path not in self._names

    def items(self, path: Path) -> list[Item]:
        self._step("items")
        self._need_there(path)
        here = [(p.name, f) for p, f in self._names.items() if p.parent == path]
        return sorted(Item(name, True, len(f.data), f.used_ns) for name, f in here)

    def set_time(self, path: Path, used_ns: int) -> None:
        file = self._names.get(path)
        if file is not None:
            file.used_ns = used_ns

    def room(self, path: Path) -> Room:
        self._step("room")
        self._need_there(path)
        return Room(max(0, self._free()), self.capacity_bytes)

    # The index

    def database(self, path: Path) -> sqlite3.Connection:
        self._step("database")
        self._need_there(path)
        connection = sqlite3.connect(
            ":memory:", check_same_thread=False, isolation_level=None, factory=_Memory
        )
        connection.disk, connection.name = self, str(path)
        images = self._databases.setdefault(connection.name, [])
        if images:
            connection.deserialize(images[-1])
        self._connections[connection.name] = connection
        return connection

    def keep_database(self, name: str, connection: _Memory) -> None:
        """What was committed outlives the connection."""
        if self._connections.get(name) is connection:
            self._databases[name].append(connection.serialize())
            del self._connections[name]

    def remove_database(self, path: Path) -> None:
        self._step("remove_database")
        self._databases.pop(str(path), None)
        self._connections.pop(str(path), None)


def _survivor(file: _File, rng: random.Random) -> bytearray:
    """A legal content after a power loss: any sectors of what was not synced, in any order."""
    data = bytearray(file.durable)
    style = rng.choice(("none", "all", "some", "some", "torn"))
    if style == "none":
        return data
    keep = rng.choice((0.3, 0.8, 0.97))
    for offset, written in file.pending:
        if written is None:
            if style == "all" or rng.random() < keep:
                del data[offset:]
                data.extend(bytes(offset - len(data)))
        elif style == "all" or (style == "some" and rng.random() < keep):
            _put(data, offset, written, rng)
        else:
            for at in range(0, len(written), SECTOR):
                if rng.random() < keep:
                    _put(data, offset + at, written[at : at + SECTOR], rng)
    return data


def _put(data: bytearray, offset: int, written: bytes, rng: random.Random) -> None:
    gap = offset - len(data)
    if (
        gap > 0
    ):  # the file grew, its bytes did not arrive: zeros, or on some file systems what lay there before
        data.extend(rng.randbytes(gap) if rng.random() < 0.2 else bytes(gap))
    data[offset : offset + len(written)] = written


class FaultyReader:
    """Reads from a simulated disk in the caller's thread: what was submitted is done when `submit` returns."""

    name = "simulated disk"
    use_direct = False

    def submit(self, jobs: Sequence[ReadJob], priority: int) -> None:
        """Carries the jobs out."""
        del priority
        for job in jobs:
            self._run(job)

    def run(self, jobs: Sequence[ReadJob]) -> None:
        """The same."""
        self.submit(jobs, 0)

    def close(self) -> None:
        """Nothing is ever in flight."""

    @staticmethod
    def _run(job: ReadJob) -> None:
        error: OSError | None = None
        try:
            buffers = job.begin()
            if buffers is None:
                error = OSError(errno.ECANCELED, "no longer wanted")
            else:
                _fill(job, buffers)
        except OSError as failure:
            error = failure
        job.finish(error)


def _fill(job: ReadJob, buffers: list[memoryview]) -> None:
    offset = job.offset
    for buffer in buffers:
        view = buffer
        while len(view):
            part = job.file.read(len(view), offset)
            if not part:
                raise OSError(errno.EIO, "the file is shorter than its records")
            view[: len(part)] = part
            view, offset = view[len(part) :], offset + len(part)
