"""Power losses of transcripts.db and keys.db: SQLite's real writes, recorded, cut off anywhere, opened again.

    LD_PRELOAD=... python stress_powerloss.py --power-losses 20000 --seed 1 --processes 2

prints one JSON line. `--weakened` turns SQLite's syncs off, to see that the campaign notices. What had been
acknowledged before the cut must be there, forgotten stays forgotten, and nothing may be damaged.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import shutil
import sqlite3
import sys
import time
import traceback
from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Self

import stress_home
from lost_power import Disk, What, read_trace
from shim import Shim
from stress_kill_child import Child
from stress_processes import fork, parallel
from stress_story import Stories

from edgekv_storage import DataDir, KeyChain, StorageError, Transcripts

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from edgekv_storage import ConversationRow

STEPS_RECORDED = 60
CHECK_EACH = 25
_MOST_VIOLATIONS = 20


class NoStore:
    """Stands for the KV: segments lose power on the simulated disk of the storage tests."""

    def forget(self, sequence_id: bytes) -> None:
        """Nothing to forget."""

    def close(self) -> None:
        """Nothing to close."""


class TextHome:
    """Keys and transcripts of a data directory. A context manager."""

    def __init__(self, path: Path) -> None:
        """Raises StorageError."""
        self.path = path
        self.store = NoStore()
        with ExitStack() as opening:
            self.directory = opening.enter_context(DataDir.open(path))
            self.keys = KeyChain.open(self.directory, protection="file")
            self.transcripts = opening.enter_context(Transcripts.open(self.directory, self.keys))
            self._finish_forgetting()
            self._open = opening.pop_all()

    def _finish_forgetting(self) -> None:
        for sequence_id in self.keys.destroyed():
            self.transcripts.delete_sequence(sequence_id)
            self.keys.finish(sequence_id)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._open.close()


class Writer(Child):
    """Writes text only, and tells it to the trace."""

    steps = {"turn": 10, "update": 3, "rename": 1, "forget": 2, "rotate": 1, "reopen": 1}  # noqa: RUF012

    def __init__(self, path: Path, seed: str, shim: Shim) -> None:
        super().__init__(path, seed, -1)
        self._shim = shim

    def tell(self, kind: str, **what: object) -> None:
        """A mark between the writes."""
        if kind == "doing":
            return  # nothing to judge by
        if kind == "failed":
            sys.stderr.write(str(what["trace"]))
        self._shim.mark(json.dumps({"kind": kind, **what}).encode())

    def open_home(self) -> Any:
        """Without a store."""
        return TextHome(self.path)

    def do_rotate(self, home: TextHome, _: ConversationRow) -> None:
        home.keys.rotate("file")

    def do_reopen(self, home: TextHome, _: ConversationRow) -> None:
        home.transcripts.close()
        home.transcripts = Transcripts.open(home.directory, home.keys)
        home._open.callback(home.transcripts.close)


class NeverSynced(sqlite3.Connection):
    """SQLite as it must not be used."""

    def execute(self, statement: str, *parameters: Any) -> sqlite3.Cursor:
        """The transcripts' FULL becomes OFF."""
        if statement == "PRAGMA synchronous = FULL":
            statement = "PRAGMA synchronous = OFF"
        return super().execute(statement, *parameters)


def record(path: Path, trace: Path, seed: str, *, is_weakened: bool) -> None:
    """A process writes at `path`, its changes go to `trace`."""

    def work(_: int) -> None:
        shim = Shim()
        shim.watch(path)
        shim.trace_to(os.open(trace, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600))
        if is_weakened:
            connect = sqlite3.connect
            sqlite3.connect = lambda *a, **k: connect(*a, factory=NeverSynced, **k)  # type: ignore[assignment]
        Writer(path, seed, shim).run(STEPS_RECORDED)

    pid, fd = fork(work)
    _, status = os.waitpid(pid, 0)
    os.close(fd)
    if status:
        raise RuntimeError(f"the writer of {seed} failed; its traceback is on stderr")


@dataclass
class Report:
    """What a campaign found."""

    power_losses: int = 0
    recordings: int = 0
    acknowledged_turns: int = 0
    seconds: float = 0.0
    violations: list[str] = field(default_factory=list)


def run(base: Path, power_losses: int, seed: int, *, is_weakened: bool) -> Report:
    """Recordings, each cut at every change at least once, until there were enough power losses."""
    report, began = Report(), time.monotonic()
    while report.power_losses < power_losses and len(report.violations) < _MOST_VIOLATIONS:
        name = f"{seed}.{report.recordings}"
        shutil.rmtree(base / "data", ignore_errors=True)  # a recording begins with nothing
        record(base / "data", base / "trace", name, is_weakened=is_weakened)
        _play(base, name, report, power_losses)
        report.recordings += 1
    report.seconds = time.monotonic() - began
    return report


def _play(base: Path, name: str, report: Report, power_losses: int) -> None:
    rng = random.Random(name)
    disk, stories = Disk(base / "data"), Stories()
    for number, event in enumerate(read_trace(base / "trace")):
        if event.what is What.MARK:
            told = json.loads(event.data)
            if told["kind"] in ("may", "did"):
                stories.note(told)
        elif event.what is not What.OPEN:
            disk.play(event)
        else:
            continue
        if report.power_losses >= power_losses or len(report.violations) >= _MOST_VIOLATIONS:
            break
        broken = _examine(base / "data", disk.lose_power(rng), stories.copy(), report.power_losses)
        report.violations += [f"seed {name} event {number}: {line}" for line in broken]
        report.power_losses += 1
    report.acknowledged_turns += stories.num_acknowledged


def _examine(path: Path, files: dict[str, bytes], stories: Stories, number: int) -> list[str]:
    """Opens what a power loss left."""
    shutil.rmtree(path, ignore_errors=True)
    path.mkdir(mode=0o700)
    for name, data in files.items():
        (path / name).write_bytes(data)
        (path / name).chmod(0o600)
    try:
        with TextHome(path) as home:
            rows = home.transcripts.conversations()
            found = {
                row.sequence_id.hex(): {str(t.id): t.blob.decode() for t in home.transcripts.turns(row.id)}
                for row in rows
            }
            broken = [f"notice: {line}" for line in home.transcripts.notices]
            broken += [f"damaged: {row}" for row in home.transcripts.damaged_conversations()]
            broken += stories.judge(found)
            for sequence in stories.forgotten():
                if home.keys.find(bytes.fromhex(sequence)) is not None:
                    broken.append(f"the key of {sequence} came back")
    except (StorageError, AssertionError) as error:
        return [f"{type(error).__name__}: {error}"]
    except Exception:
        return [traceback.format_exc()[-2500:]]
    if number % CHECK_EACH == 0:
        broken += [line for name in ("transcripts.db", "keys.db") for line in _integrity(path / name)]
    return broken


def _integrity(path: Path) -> list[str]:
    db = sqlite3.connect(path)
    try:
        (answer,) = db.execute("PRAGMA integrity_check").fetchone()
    finally:
        db.close()
    return [] if answer == "ok" else [f"{path.name}: {answer}"]


def share(base: Path, power_losses: int, seed: int, *, is_weakened: bool) -> Callable[[], dict[str, object]]:
    """A worker's part."""

    def work() -> dict[str, object]:
        base.mkdir()
        return vars(run(base, power_losses, seed, is_weakened=is_weakened))

    return work


def main() -> int:
    """Exit status 1 when a promise was broken."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--power-losses", type=int, default=20_000)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--processes", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--weakened", action="store_true")
    options = parser.parse_args()
    base = stress_home.memory_directory()
    n, count = options.power_losses, options.processes
    try:
        work = [
            share(
                base / str(i),
                n // count + (i < n % count),
                options.seed * 1000 + i,
                is_weakened=options.weakened,
            )
            for i in range(count)
        ]
        reports = parallel(work)
    finally:
        shutil.rmtree(base, ignore_errors=True)
    total = Report(
        *(sum(r[k] for r in reports) for k in ("power_losses", "recordings", "acknowledged_turns"))
    )
    total.seconds = max(r["seconds"] for r in reports)
    total.violations = [line for r in reports for line in r["violations"]]
    sys.stdout.write(json.dumps(vars(total)) + "\n")
    return bool(total.violations)


if __name__ == "__main__":
    sys.exit(main())
