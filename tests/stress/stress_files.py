"""Damage to whole files: cut, made longer, zeroed, gone, exchanged, of another directory, at every boundary +-1.

    python stress_files.py --seed 1 [--runs 200]

prints one JSON line. Judged as flipped bits are: detected or harmless, never a wrong leaf or a silent loss.
"""

from __future__ import annotations

import argparse
import collections
import json
import random
import shutil
import sys
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING

import stress_home
from stress_flips import Report, Sample, examine, kind_of

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

_PAGE = 4096
_SECTOR = 512


@dataclass(frozen=True)
class Damage:
    """What becomes of one file of one sample."""

    sample: int
    name: str
    what: str
    at: int = 0

    def apply(self, samples: list[Sample], foreign: Sample) -> None:
        """Does it. `foreign`: the same kind of directory, made elsewhere with other keys."""
        sample, name, at = samples[self.sample], self.name, self.at
        data = sample.files[name]
        if self.what == "gone":
            (sample.path / name).unlink()
        elif self.what == "foreign":
            sample.write(name, foreign.files[_counterpart(name, foreign)])
        elif self.what == "exchanged":
            one, two = (n for n in sorted(sample.files) if n.endswith(".kv"))
            sample.write(one, sample.files[two])
            sample.write(two, data if name == one else sample.files[one])
        else:
            sample.write(name, _changed(data, self.what, at))


def _changed(data: bytes, what: str, at: int) -> bytes:
    if what == "cut":
        return data[:at]
    if what == "zeros added":
        return data + bytes(at)
    if what == "junk added":
        return data + random.Random(at).randbytes(at)
    if what == "zeroed from":
        return data[:at] + bytes(len(data) - at)
    stop = min(len(data), at + (_PAGE if what == "page zeroed" else _SECTOR))
    return data[:at] + bytes(stop - at) + data[stop:]


def _counterpart(name: str, foreign: Sample) -> str:
    if name in foreign.files:
        return name
    return min(n for n in foreign.files if kind_of(n) == kind_of(name))


def all_damage(number: int, sample: Sample) -> Iterator[Damage]:
    """Everything for one sample."""
    for name, data in sample.files.items():
        size = len(data)
        boundaries = {at + d for at in range(0, size + 1, _PAGE) for d in (-1, 0, 1)} | {16, 112, size - 1}
        for at in sorted(b for b in boundaries if 0 <= b < size):
            for what in ("cut", "zeroed from", "page zeroed", "sector zeroed"):
                yield Damage(number, name, what, at)
        for added in (1, _SECTOR, _PAGE - 1, _PAGE, _PAGE + 1):
            yield Damage(number, name, "zeros added", added)
            yield Damage(number, name, "junk added", added)
        yield Damage(number, name, "gone")
        yield Damage(number, name, "foreign")
        if name.endswith(".kv"):
            yield Damage(number, name, "exchanged")


def run(base: Path, runs: int | None, seed: int) -> Report:
    """All of it, or so many drawn at random."""
    report, began = Report(), time.monotonic()
    samples = [Sample(base / "closed", is_closed=True), Sample(base / "killed", is_closed=False)]
    foreign = Sample(base / "foreign", is_closed=False)
    todo = [damage for number, sample in enumerate(samples) for damage in all_damage(number, sample)]
    if runs is not None:
        todo = random.Random(seed).sample(todo, min(runs, len(todo)))
    counts: dict[str, collections.Counter[str]] = collections.defaultdict(collections.Counter)
    for damage in todo:
        damage.apply(samples, foreign)
        outcome, broken = examine(samples[damage.sample])
        counts[kind_of(damage.name)][outcome] += 1
        report.violations += [f"{damage}: {line}" for line in broken]
        report.flips += 1
        samples[damage.sample].restore()
    report.outcomes = {kind: dict(c) for kind, c in counts.items()}
    report.seconds = time.monotonic() - began
    return report


def main() -> int:
    """Exit status 1 when a promise was broken."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--runs", type=int, help="so many of them, drawn at random; all without it")
    options = parser.parse_args()
    base = stress_home.memory_directory()
    try:
        report = run(base, options.runs, options.seed)
    finally:
        shutil.rmtree(base, ignore_errors=True)
    sys.stdout.write(json.dumps(vars(report)) + "\n")
    return bool(report.violations)


if __name__ == "__main__":
    sys.exit(main())
