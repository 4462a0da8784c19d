"""Damage to files: one bit flipped, anywhere, then everything opened and read.

    python stress_flips.py --bit-flips 100000 --seed 1 --processes 2

prints one JSON line. A flip must be detected (a clear error, a named turn, a leaf that is computed again) or
harmless; a wrong leaf, an altered or silently lost turn, and any other exception are violations.
"""

from __future__ import annotations

import argparse
import collections
import faulthandler
import json
import os
import random
import shutil
import sys
import time
import traceback
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import stress_home
from stress_home import Home
from stress_processes import parallel

from edgekv_storage import StorageError

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

STUCK_S = 600
LEAVES = 12


@dataclass(frozen=True)
class Told:
    """What was written of one conversation."""

    name: str
    meta: bytes
    turns: dict[int, bytes]
    head: int


class Sample:
    """The files of a small data directory, as bytes, and what was written into it."""

    def __init__(self, path: Path, *, is_closed: bool) -> None:
        """Made at `path`; `is_closed` or as a kill leaves it, with journals and an open segment."""
        self.path = path
        self.told: dict[bytes, Told] = {}
        with Home(path) as home:
            for number in range(3):
                self._talk(home, number)
            home.store.flush()
            if not is_closed:
                self.files = _contents(path)
        if is_closed:
            self.files = _contents(path)
        self._marks: dict[str, tuple[int, ...]] = {}
        shutil.rmtree(path)
        path.mkdir(mode=0o700)
        self.restore()

    def _talk(self, home: Home, number: int) -> None:
        sequence_id, name = bytes([number]) * 16, f"talk {number}"
        meta = b"meta of %d" % number
        row = home.transcripts.create_conversation(name, sequence_id, meta)
        turns: dict[int, bytes] = {}
        parent = None
        for turn in range(3):
            text = b"conversation %d turn %d " % (number, turn) + b"y" * 40
            parent = home.transcripts.append_turn(row.id, parent, text)
            turns[parent] = text
        assert parent is not None
        self.told[sequence_id] = Told(name, meta, turns, parent)
        if number < 2:
            chain = stress_home.chain_of(home, sequence_id, number)
            stress_home.append(home, sequence_id, chain, 0, LEAVES // 2)
            stress_home.append(home, sequence_id, chain, LEAVES // 2, LEAVES)

    def restore(self) -> None:
        """Every file as it was; only what has changed is written."""
        there = {str(p.relative_to(self.path)) for p in self.path.rglob("*") if not p.is_dir()}
        for name in there - self.files.keys():
            (self.path / name).unlink()
        for name, data in self.files.items():
            if name not in there or self._mark(name) != self._marks[name]:
                self.write(name, data)
                self._marks[name] = self._mark(name)

    def write(self, name: str, data: bytes) -> None:
        """Replaces one file."""
        file = self.path / name
        file.unlink(missing_ok=True)
        file.parent.mkdir(exist_ok=True)
        file.write_bytes(data)
        file.chmod(0o600)

    def _mark(self, name: str) -> tuple[int, ...]:
        status = (self.path / name).stat()
        return status.st_ino, status.st_mtime_ns, status.st_size


def _contents(path: Path) -> dict[str, bytes]:
    return {str(p.relative_to(path)): p.read_bytes() for p in sorted(path.rglob("*")) if p.is_file()}


def examine(sample: Sample) -> tuple[str, list[str]]:
    """Opens and reads a sample's directory; (what happened, promises broken)."""
    try:
        with Home(sample.path) as home:
            outcome, broken = _compare(home, sample)
            notices = home.notices()
        broken += [f"not one line: {line!r}" for line in notices if "\n" in line]
        if not broken and outcome == "harmless" and any("damaged" in n or "rebuilt" in n for n in notices):
            outcome = "repaired"
    except StorageError as error:
        return "refused", [f"not one line: {error}"] if "\n" in str(error) else []
    except Exception:
        return "crash", [traceback.format_exc()[-2500:]]
    return outcome, broken


def _compare(home: Home, sample: Sample) -> tuple[str, list[str]]:
    outcome, broken = _compare_texts(home, sample)
    found = {row.sequence_id for row in home.transcripts.conversations()}
    for number, sequence_id in enumerate(sample.told):
        if number == 2 or sequence_id not in found:
            continue
        try:
            served = stress_home.read_all(home, sequence_id)
        except StorageError as error:
            outcome = "refused" if outcome == "harmless" else outcome
            broken += [f"not one line: {error}"] if "\n" in str(error) else []
            continue
        if served.wrong:
            broken.append(f"{served.wrong} wrong leaves")
        elif (served.good < LEAVES_GOOD or served.damaged) and outcome == "harmless":
            outcome = "recomputed"
    return outcome, broken


LEAVES_GOOD = (LEAVES + 2 * 8) * stress_home.LAYOUT.num_layers  # the other chains share the first 8 leaves


def _compare_texts(home: Home, sample: Sample) -> tuple[str, list[str]]:
    outcome, broken = "harmless", []
    rows = {row.sequence_id: row for row in home.transcripts.conversations()}
    is_named = bool(home.transcripts.damaged_conversations() or home.transcripts.notices)
    has_rolled_back = any("journal was cut" in line for line in home.transcripts.notices)
    broken += [f"conversation {s.hex()} was never made" for s in rows.keys() - sample.told.keys()]
    for sequence_id, told in sample.told.items():
        row = rows.get(sequence_id)
        if row is None:
            outcome = "named"
            if not is_named:
                broken.append(f"conversation {told.name!r} is lost without a word")
            continue
        if has_rolled_back:
            outcome = "named"
        elif (row.name, row.meta, row.head) != (told.name, told.meta, told.head):
            broken.append(f"conversation {told.name!r} became {row}")
        try:
            turns = {turn.id: turn.blob for turn in home.transcripts.turns(row.id)}
            is_whole = True
        except StorageError:
            good, _ = home.transcripts.readable_turns(row.id)
            turns, is_whole, outcome = {turn.id: turn.blob for turn in good}, False, "named"
        if not turns.items() <= told.turns.items():
            broken.append(f"a turn of {told.name!r} was altered or invented")
        if is_whole and turns != told.turns and not has_rolled_back:
            broken.append(f"turns of {told.name!r} are lost without a word")
    return outcome, broken


@dataclass
class Report:
    """What happened how often, by kind of file; `violations` is empty when every flip was caught."""

    flips: int = 0
    seconds: float = 0.0
    outcomes: dict[str, dict[str, int]] = field(default_factory=dict)
    violations: list[str] = field(default_factory=list)


def run(base: Path, flips: int, seed: int) -> Report:
    """Half of the flips are spread over bytes, half over files, so that small ones get their share."""
    rng = random.Random(seed)
    report, began = Report(), time.monotonic()
    counts: dict[str, collections.Counter[str]] = collections.defaultdict(collections.Counter)
    samples = [Sample(base / "closed", is_closed=True), Sample(base / "killed", is_closed=False)]
    for sample in samples:
        clean = examine(sample)
        assert clean == ("harmless", []), f"before any damage: {clean}"
        sample.restore()
    for number in range(flips):
        sample = samples[number % 2]
        names = [name for name, data in sample.files.items() if data]
        weights = [len(sample.files[name]) for name in names] if rng.random() < 0.5 else None
        name = rng.choices(names, weights)[0]
        data = bytearray(sample.files[name])
        at = rng.randrange(len(data))
        data[at] ^= 1 << rng.randrange(8)
        sample.write(name, bytes(data))
        if number % 50 == 0:
            faulthandler.dump_traceback_later(STUCK_S, exit=True)  # milliseconds a call
        outcome, broken = examine(sample)
        counts[kind_of(name)][outcome] += 1
        report.violations += [f"seed {seed} flip {number}, {name} byte {at}: {line}" for line in broken]
        report.flips += 1
        if len(report.violations) > 40:
            break
        sample.restore()
    faulthandler.cancel_dump_traceback_later()
    report.outcomes = {kind: dict(c) for kind, c in counts.items()}
    report.seconds = time.monotonic() - began
    return report


def kind_of(name: str) -> str:
    """Segments are one kind of file."""
    return "seg-*.kv" if name.endswith(".kv") else "master key" if name.startswith("master") else name


def merged(reports: list[Report]) -> Report:
    """Sums, and the longest time."""
    total = Report(sum(r.flips for r in reports), max(r.seconds for r in reports))
    for report in reports:
        for kind, counts in report.outcomes.items():
            into = total.outcomes.setdefault(kind, {})
            for outcome, count in counts.items():
                into[outcome] = into.get(outcome, 0) + count
        total.violations += report.violations
    return total


def share(base: Path, flips: int, seed: int) -> Callable[[], dict[str, object]]:
    """A worker's part."""

    def work() -> dict[str, object]:
        base.mkdir()
        return vars(run(base, flips, seed))

    return work


def main() -> int:
    """Exit status 1 when a promise was broken."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--bit-flips", type=int, default=100_000)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--processes", type=int, default=os.cpu_count() or 1)
    options = parser.parse_args()
    base = stress_home.memory_directory()
    try:
        n, count = options.bit_flips, options.processes
        parts = [n // count + (i < n % count) for i in range(count)]
        work = [share(base / str(i), part, options.seed * 1000 + i) for i, part in enumerate(parts)]
        report = merged([Report(**answer) for answer in parallel(work)])
    finally:
        shutil.rmtree(base, ignore_errors=True)
    sys.stdout.write(json.dumps(vars(report)) + "\n")
    return bool(report.violations)


if __name__ == "__main__":
    sys.exit(main())
