"""The kill campaign: processes at work, SIGKILL at a random moment or system call, a look at what is left.

    python stress_kills.py --kills 10000 --seed 1 --processes 2

prints one JSON line. A server forks each process before it has any thread, so a kill costs milliseconds. What
the killed one was told is done must be there, what was never asked must not be, no leaf may be wrong, nothing
forgotten may come back, and no (key, segment, record) may stand for two contents.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import re
import shutil
import signal
import struct
import sys
import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import stress_home
from shim import CHANGES, EVERYTHING, SYNC, WRITE, Shim
from stress_home import Home
from stress_kill_child import Child, weaken
from stress_processes import drain, fork, parallel, send
from stress_story import Stories

from edgekv_storage import DataDir, KeyChain, check_directory

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

DIRECTORY_KILLS = 40  # then a new directory: old ones grow, and a fault of the first minutes shows again
READY = b'{"kind": "ready"'
_FINE = re.compile(r"disk limit|key lies in a file")
_PAGE = 4096


@dataclass
class Report:
    """What a campaign found; `violations` is empty when the store kept its promises."""

    kills: int = 0
    kills_at_calls: int = 0
    kills_in: dict[str, int] = field(default_factory=dict)  # by what the process was doing
    acknowledged_turns: int = 0
    good_leaves: int = 0
    forgotten: int = 0
    records: int = 0
    seconds: float = 0.0
    violations: list[str] = field(default_factory=list)


class Campaign:
    """One worker's share. `seed` and the number of a kill reproduce what its process did."""

    def __init__(self, base: Path, seed: int, *, is_weakened: bool = False) -> None:
        self.base = base
        self.is_weakened = is_weakened
        self.seed = seed
        self.rng = random.Random(seed)
        self.shim = Shim()
        self.report = Report()
        self.path = base
        self.stories = Stories()
        self.seals: dict[tuple[bytes, int, int, int], bytes] = {}

    def run(self, kills: int) -> Report:
        """Kills so many processes."""
        began = time.monotonic()
        for number in range(kills):
            if number % DIRECTORY_KILLS == 0:
                self.start_over(number)
            lines = self.kill_one(number)
            self.learn(number, lines)
            self.collect_seals(number)
            self.look(number)
            self.collect_seals(number)
            if len(self.report.violations) > 20:
                break
        self.report.kills = number + 1
        self.add_up()
        self.report.records = len(self.seals)
        self.report.seconds = time.monotonic() - began
        return self.report

    def start_over(self, number: int) -> None:
        self.add_up()
        shutil.rmtree(self.path, ignore_errors=True)
        self.path = self.base / f"data-{number}"
        self.stories = Stories()
        stress_home.chain_ids.cache_clear()

    def add_up(self) -> None:
        self.report.acknowledged_turns += self.stories.num_acknowledged
        self.report.forgotten += self.stories.num_forgotten

    def violation(self, number: int, what: str) -> None:
        self.report.violations.append(f"seed {self.seed} kill {number}: {what}")

    # Killing

    def kill_one(self, number: int) -> list[bytes]:
        """Everything the process told before it died."""
        seed = f"{self.seed}.{number}"
        at_call = self.shim.is_there and self.rng.random() < 0.5
        kinds = self.rng.choice((EVERYTHING, CHANGES, WRITE, SYNC))
        nth = int(self.rng.expovariate(1 / (250 if kinds == EVERYTHING else 80))) + 1
        is_after = self.rng.random() < 0.5
        delay = 0.5 if at_call else self.rng.expovariate(1 / 0.03)

        def work(fd: int) -> None:
            if self.is_weakened:
                weaken()
            if self.shim.is_there:
                self.shim.watch(self.path)
                self.shim.kill(kinds if at_call else 0, nth, after=is_after)
            Child(self.path, seed, fd).run()

        pid, fd = fork(work)
        told = b""
        if self.rng.random() < 0.75:  # the others die within that time of their start, most while opening
            told = drain(fd, time.monotonic() + 60, READY)
        told += drain(fd, time.monotonic() + delay)
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
        told += drain(fd, time.monotonic() + 60)
        os.close(fd)
        self.report.kills_at_calls += at_call
        return told.split(b"\n")[:-1]

    def learn(self, number: int, lines: list[bytes]) -> None:
        doing = "open"
        for line in lines:
            told = json.loads(line)
            if told["kind"] in ("doing", "ready"):
                doing = told.get("step", "first")
            elif told["kind"] == "failed":
                self.violation(number, told["trace"])
            elif told["kind"] in ("may", "did"):
                self.stories.note(told)
        self.report.kills_in[doing] = self.report.kills_in.get(doing, 0) + 1

    # Looking

    def look(self, number: int) -> None:
        """In a process of its own, so that the server never has a thread."""
        gone = self.stories.forgotten()
        pid, fd = fork(lambda out: send(out, look_at(self.path, gone)))
        answer = drain(fd, time.monotonic() + 60)
        _, status = os.waitpid(pid, 0)
        os.close(fd)
        try:
            seen = json.loads(answer)
        except ValueError:
            self.violation(number, f"opening it again died with {status}: {answer[-2000:]!r}")
            return
        self.report.violations += [f"seed {self.seed} kill {number}: {line}" for line in seen["violations"]]
        self.report.good_leaves += seen["good_leaves"]
        for line in self.stories.judge(seen["conversations"]):
            self.violation(number, line)

    # Nonces

    def collect_seals(self, number: int) -> None:
        """Every record header on the drive: the same place under the same key must be the same record."""
        files = [*self.path.glob("seg-*.kv"), *self.path.glob("quarantine/*")]
        used = 0
        for file in files:
            data = file.read_bytes()
            used += len(data) if file.parent == self.path else 0
            for place, content in record_headers(data):
                if self.seals.setdefault(place, content) != content:
                    self.violation(number, f"{file.name}: record {place[3]} was sealed twice")
        if used > stress_home.QUOTA_BYTES:
            self.violation(number, f"{used} bytes of segments, the limit is {stress_home.QUOTA_BYTES}")


def record_headers(data: bytes) -> list[tuple[tuple[bytes, int, int, int], bytes]]:
    """((key id, segment, random, number), the header) of every record a segment's bytes show, cut ones too."""
    if len(data) < _PAGE:
        return []
    segment, random_number, key_id = struct.unpack_from("<QQ16s", data, 16)
    found = []
    for at in range(_PAGE, len(data) - 111, _PAGE):
        if data[at : at + 4] == b"EKVR":
            owner, other, number = struct.unpack_from("<QQQ", data, at + 8)
            if (owner, other) == (segment, random_number):
                found.append(((key_id, segment, random_number, number), data[at : at + 112]))
    return found


def look_at(path: Path, gone: list[str]) -> dict[str, object]:
    """Opens a directory as the program does, reads all of it, and says what is there."""
    violations: list[str] = []
    good = 0
    conversations: dict[str, dict[str, str]] = {}
    with Home(path) as home:
        for row in home.transcripts.conversations():
            turns = home.transcripts.turns(row.id)
            conversations[row.sequence_id.hex()] = {str(t.id): t.blob.decode() for t in turns}
        for sequence in gone:
            violations += traces_of(home, bytes.fromhex(sequence))
        for sequence in conversations:
            served = stress_home.read_all(home, bytes.fromhex(sequence))
            good += served.good
            if served.wrong or served.damaged:
                violations.append(f"sequence {sequence}: {served}")
        violations += [f"check: {problem}" for problem in home.store.check()]
        violations += [f"notice: {line}" for line in home.notices() if not _FINE.search(line)]
    with DataDir.open(path) as directory:
        checked = check_directory(directory, KeyChain.open(directory, protection="file"))
    violations += [f"edgekv check: {problem}" for problem in checked.problems]
    return {"violations": violations, "good_leaves": good, "conversations": conversations}


def traces_of(home: Home, sequence_id: bytes) -> list[str]:
    """What is left of a forgotten sequence: must be nothing."""
    left = [f for f in home.path.rglob("*.kv") if sequence_id in f.read_bytes()[:_PAGE]]
    traces = [f"{file.name} of a forgotten conversation is there" for file in left]
    if home.keys.find(sequence_id) is not None:
        traces.append("the key of a forgotten conversation is there")
    return traces


def merged(reports: list[Report]) -> Report:
    """Sums; the longest time; at most 20 violations."""
    total = Report()
    for name in ("kills", "kills_at_calls", "acknowledged_turns", "good_leaves"):
        setattr(total, name, sum(getattr(r, name) for r in reports))
    total.forgotten, total.records = sum(r.forgotten for r in reports), sum(r.records for r in reports)
    for step in sorted({step for r in reports for step in r.kills_in}):
        total.kills_in[step] = sum(r.kills_in.get(step, 0) for r in reports)
    total.seconds = max(r.seconds for r in reports)
    total.violations = [line for r in reports for line in r.violations][:20]
    return total


def share(base: Path, kills: int, seed: int, *, is_weakened: bool) -> Callable[[], dict[str, object]]:
    """A worker's part of the campaign."""

    def work() -> dict[str, object]:
        base.mkdir()
        return vars(Campaign(base, seed, is_weakened=is_weakened).run(kills))

    return work


def campaign(kills: int, seed: int, processes: int, *, is_weakened: bool = False) -> Report:
    """The whole, spread over processes."""
    base = stress_home.memory_directory()
    try:
        parts = [kills // processes + (i < kills % processes) for i in range(processes)]
        work = [
            share(base / str(i), part, seed * 1000 + i, is_weakened=is_weakened)
            for i, part in enumerate(parts)
        ]
        return merged([Report(**answer) for answer in parallel(work)])
    finally:
        shutil.rmtree(base, ignore_errors=True)


def main() -> int:
    """Exit status 1 when a promise was broken."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--kills", type=int, default=10_000)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--processes", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--weakened", action="store_true", help="acknowledge too early: it has to be noticed")
    options = parser.parse_args()
    report = campaign(options.kills, options.seed, options.processes, is_weakened=options.weakened)
    sys.stdout.write(json.dumps(vars(report)) + "\n")
    return bool(report.violations)


if __name__ == "__main__":
    sys.exit(main())
