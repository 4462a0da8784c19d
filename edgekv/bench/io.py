"""`bench io`: leaves read and extents appended through the store, against fio on the same files in the same run.

Each figure is a median over rounds. A drive shared with others changes its speed within a second, so fio has a
turn of its own beside every turn of ours, before it and after it alternately, and the ratio is the median of these
pairs. Verification or decryption is part of every read of ours.
"""

from __future__ import annotations

import dataclasses
import functools
import shutil
import statistics
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, TypeVar

from edgekv.bench.gil import pace_kept
from edgekv.bench.leaves import Arena, read_leaves, write_leaves
from edgekv.bench.page_cache import drop_page_cache
from edgekv.bench.report import Labels
from edgekv_storage import IoUnusable, MemoryKeys

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import Path

    from edgekv.bench.fio import Fio, Pace
    from edgekv.bench.leaves import Leaves
    from edgekv.bench.report import Row

KIB, MIB = 1 << 10, 1 << 20
_APPENDED_LEAF = 16 << 10  # as of models: the default one has 30 leaves of 12 KiB a column
_APPENDED_LAYERS = 32
_USUAL_DEPTH = 32
_GIL_SIZE = 256 * KIB
_Key = TypeVar("_Key")


@dataclass(frozen=True, slots=True)
class Plan:
    """What is measured. `seconds` is one turn of one program; `gil_bytes` are read beside a busy thread."""

    sizes: Sequence[int] = (4 * KIB, 16 * KIB, 64 * KIB, 256 * KIB, MIB, 4 * MIB)
    depths: Sequence[int] = (1, 8, 32, 128)
    rounds: int = 5
    seconds: float = 0.15
    file_bytes: int = 256 * MIB
    append_bytes: int = 64 * MIB
    gil_bytes: int = 1 << 30


QUICK = Plan((64 * KIB, 256 * KIB), (_USUAL_DEPTH,), rounds=3, file_bytes=64 * MIB, gil_bytes=256 * MIB)


@dataclass
class Turns:
    """Paces of one program over the rounds, and those of its peer beside it, as far as there is one."""

    ours: list[Pace] = field(default_factory=list)
    peers: list[Pace] = field(default_factory=list)

    def ratio(self) -> float | None:
        """Our rate over the peer's: the median over pairs."""
        if not self.peers or len(self.peers) != len(self.ours):
            return None
        pairs = zip(self.ours, self.peers, strict=True)
        return statistics.median(own.bytes_per_s / peer.bytes_per_s for own, peer in pairs)


def measure(folder: Path, plan: Plan, fio: Fio | None, say: Callable[[str], None]) -> list[Row]:
    """Rows of reads, appends and the GIL; `folder` is on the drive in question and is left empty."""
    backends = usable_backends(folder)
    arena = Arena()
    rows: list[Row] = []
    for size in plan.sizes:
        say(f"{size // KIB} KiB")
        stored = {
            encrypted: write_leaves(
                folder / f"read-{size}-{encrypted}",
                size,
                plan.file_bytes,
                4 * MIB,
                MemoryKeys() if encrypted else None,
            )[0]
            for encrypted in (False, True)
        }
        for leaves in stored.values():
            drop_page_cache(leaves.folder)
        for depth in plan.depths:
            rows += _reads(stored, backends, arena, depth, plan, fio)
        if size == _GIL_SIZE:
            rows += _beside_a_thread(stored, backends, arena, plan)
        for leaves in stored.values():
            shutil.rmtree(leaves.folder)
        rows += _appends(folder, size, plan, fio)
    return rows


def usable_backends(folder: Path) -> list[str]:
    """The readers that work here."""
    from edgekv_storage.io.choice import require  # noqa: PLC0415  not for programs in general

    try:
        require("uring", folder)
    except IoUnusable:
        return ["pread", "buffered"]
    return ["uring", "pread", "buffered"]


def _in_turn(
    programs: dict[_Key, Callable[[], Pace]], peer: Callable[[], Pace | None], rounds: int
) -> dict[_Key, Turns]:
    turns = {name: Turns() for name in programs}
    for number in range(rounds):
        for name, program in programs.items():
            before = peer() if number % 2 else None
            turns[name].ours.append(program())
            beside = before if number % 2 else peer()
            if beside is not None:
                turns[name].peers.append(beside)
    return turns


def _reads(
    stored: dict[bool, Leaves], backends: Sequence[str], arena: Arena, depth: int, plan: Plan, fio: Fio | None
) -> list[Row]:
    size, files = stored[False].size, stored[False].files
    programs = {
        (backend, encrypted): _reading(leaves, backend, arena, depth, plan)
        for backend in backends
        for encrypted, leaves in stored.items()
        if backend != "buffered" or (depth == _USUAL_DEPTH and not encrypted)
    }

    def peer() -> Pace | None:
        return None if fio is None else fio.read(files, size, depth, plan.seconds)

    rows = []
    for (backend, encrypted), turns in _in_turn(programs, peer, plan.rounds).items():
        rows += _rows("io_read", turns, backend=backend, size=size, depth=depth, encrypted=encrypted)
    return rows


def _reading(leaves: Leaves, backend: str, arena: Arena, depth: int, plan: Plan) -> Callable[[], Pace]:
    def read() -> Pace:
        with leaves.open(backend, depth) as store:
            read_leaves(
                store, leaves, arena, depth, num_bytes=2 * depth * leaves.size
            )  # tables, threads, memory
            if backend == "buffered":
                drop_page_cache(leaves.folder)
            return read_leaves(store, leaves, arena, depth, seconds=plan.seconds)

    return read


def _appends(folder: Path, size: int, plan: Plan, fio: Fio | None) -> list[Row]:
    total = min(plan.append_bytes, size * 2048)  # small extents cost a table each: fewer of them
    programs = {
        encrypted: _appending(folder / "append", size, total, encrypted=encrypted)
        for encrypted in (False, True)
    }

    def peer() -> Pace | None:
        return None if fio is None else _fio_append(fio, folder / "fio", size, total)

    rows = []
    for encrypted, turns in _in_turn(programs, peer, plan.rounds).items():
        rows += _rows("io_append", turns, backend="pwritev", size=size, encrypted=encrypted)
    return rows


def _fio_append(fio: Fio, file: Path, size: int, total: int) -> Pace | None:
    try:
        return fio.append(file, size, total)
    finally:
        file.unlink(missing_ok=True)


def _appending(folder: Path, size: int, total: int, *, encrypted: bool) -> Callable[[], Pace]:
    def append() -> Pace:
        try:
            leaf = min(size, _APPENDED_LEAF)
            layers = min(size // leaf, _APPENDED_LAYERS)
            return write_leaves(folder, leaf, total, size, MemoryKeys() if encrypted else None, layers)[1]
        finally:
            shutil.rmtree(folder, ignore_errors=True)

    return append


def _beside_a_thread(
    stored: dict[bool, Leaves], backends: Sequence[str], arena: Arena, plan: Plan
) -> list[Row]:
    """How much of its pace another Python thread keeps while leaves are read, and how fast they are then."""
    rows = []
    for backend in (name for name in backends if name != "buffered"):
        for encrypted, leaves in stored.items():
            with leaves.open(backend) as store:
                read_leaves(store, leaves, arena, 32, num_bytes=leaves.size)
                read = functools.partial(
                    read_leaves, store, leaves, arena, 32, num_bytes=plan.gil_bytes // plan.rounds
                )
                kept, rates = pace_kept(read, plan.rounds)
            labels = {"backend": backend, "size": leaves.size, "encrypted": encrypted}
            rows.append(
                _with(
                    Labels(attention=None).measured("gil_pace_kept", "ratio", kept, better="higher"), **labels
                )
            )
            rows.append(
                _with(
                    Labels(attention=None).measured(
                        "gil_read_bytes_per_s", "bytes/s", rates, better="higher"
                    ),
                    **labels,
                )
            )
    return rows


def _rows(metric: str, turns: Turns, **labels: object) -> list[Row]:
    none = Labels(attention=None)
    rate = none.measured(
        f"{metric}_bytes_per_s",
        "bytes/s",
        [pace.bytes_per_s for pace in turns.ours],
        [pace.bytes_per_s for pace in turns.peers],
        better="higher",
    )
    share = none.measured(
        f"{metric}_cpu_share",
        "cores",
        [pace.cpu_share for pace in turns.ours],
        [pace.cpu_share for pace in turns.peers],
        better="lower",
    )
    return [_with(rate, **labels, ratio=turns.ratio()), _with(share, **labels)]


def _with(row: Row, **labels: object) -> Row:
    return dataclasses.replace(row, **labels)  # type: ignore[arg-type]  # by field name
