"""Drive errors in whole generations: the n-th call on each kind of file fails, for every n.

    LD_PRELOAD=... python stress_faults.py --seed 1

A Runtime with a tiny model resumes a conversation and answers. Whatever fails on segments and index, the answer
comes with the tokens it has without a cache. Where a database or meta.json fails, either that, or one clear
line; what was acknowledged is there when the drive works again. Prints one JSON line.
"""

from __future__ import annotations

import argparse
import errno
import json
import os
import random
import shutil
import sys
import time
import traceback
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import stress_home
from shim import EVERYTHING, READ, SYNC, WRITE, Shim

sys.path.insert(0, str(Path(__file__).parents[1]))  # the maker of tiny models

from gguf_writer import write_tiny_gguf

from edgekv import Runtime
from edgekv.errors import EdgeKVError

if TYPE_CHECKING:
    from edgekv.events import Result

FIRST, SECOND = "hello the world and a user system hello the world " * 2, "and the hello"
KV_FILES, KEPT_FILES = ("/seg-", "/index.db"), ("/transcripts", "/keys.db", "/meta.json", "/LOCK", "/master-")
ERRORS = (errno.ENOSPC, errno.EIO, errno.EFBIG, errno.EDQUOT)
SHORT = 0  # half of the bytes
_ROOM = 8 << 30  # the store leaves 5 GiB free to others


@dataclass
class Report:
    """`silent`: the answer came and nothing had to be said; `noticed`: it came with a notice."""

    runs: int = 0
    injected: int = 0
    silent: int = 0
    noticed: int = 0
    refused: int = 0  # one clear line instead of an answer
    calls: dict[str, int] = field(default_factory=dict)  # of one generation without faults
    seconds: float = 0.0
    violations: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class Fault:
    """The `nth` call of `kinds` on files with `file` in their path fails with `error`, once or from then on."""

    file: str
    kinds: int
    nth: int
    error: int
    goes_on: bool

    def __str__(self) -> str:
        name = errno.errorcode.get(self.error, "short")
        when = f"call {self.nth}{' and after' if self.goes_on else ''}"
        return f"{name} at {when} of kinds {self.kinds} on {self.file}"


class Faults:
    """The campaign."""

    def __init__(self, base: Path) -> None:
        self.base = base
        self.model = write_tiny_gguf(base / "tiny.gguf")
        self.shim = Shim()
        self.report = Report()
        self.expected = self._uncached()
        with self._runtime(base / "first") as runtime:
            runtime.conversation("a").send(FIRST)

    def _runtime(self, path: Path, *, durable: bool = True) -> Runtime:
        return Runtime(
            model=str(self.model),
            data_dir=path,
            durable=durable,
            temperature=0,
            max_tokens=40,
            threads=1,
            key_protection="file",
            io="pread",
        )

    def _uncached(self) -> tuple[int, ...]:
        with self._runtime(self.base / "none", durable=False) as runtime:
            chat = runtime.conversation(private=True)
            chat.send(FIRST)
            return chat.send(SECOND).token_ids

    def count(self, file: str, kinds: int) -> int:
        """Calls of a generation that nothing disturbs; at least 1."""
        path = self._fresh()
        self.shim.watch(path, file)
        self.shim.count(kinds)
        with self._runtime(path) as runtime:
            runtime.conversation("a").send(SECOND)
        number = self.shim.counted
        self.shim.count(0)
        self.report.calls[f"{file} {kinds}"] = number
        return number

    def _fresh(self) -> Path:
        path = self.base / "data"
        shutil.rmtree(path, ignore_errors=True)
        shutil.copytree(self.base / "first", path)
        path.chmod(0o700)
        return path

    def run(self, fault: Fault) -> None:
        """One generation with one fault."""
        path = self._fresh()
        self.shim.watch(path, fault.file)
        self.shim.fail(fault.kinds, fault.nth, fault.error, from_then_on=fault.goes_on)
        result, refusal = None, ""
        try:
            with self._runtime(path) as runtime:
                result = runtime.conversation("a").send(SECOND)
        except EdgeKVError as error:
            refusal = str(error)
        except Exception:
            self._violation(fault, traceback.format_exc()[-2500:])
        failed = self.shim.failed
        self.shim.fail(0, 0, 0)
        self.report.runs += 1
        self.report.injected += failed > 0
        self._judge(fault, path, result, refusal)

    def _judge(self, fault: Fault, path: Path, result: Result | None, refusal: str) -> None:
        if result is None:
            self.report.refused += 1
            if fault.file in KV_FILES or not refusal or "\n" in refusal:
                self._violation(fault, f"no answer: {refusal}")
        else:
            self.report.noticed += bool(result.notices)
            self.report.silent += not result.notices
            if result.token_ids != self.expected:
                self._violation(fault, f"other tokens: {result.token_ids}")
        try:
            with self._runtime(path) as runtime:
                turns = runtime.conversation("a").history()
        except EdgeKVError as error:
            self._violation(fault, f"not opened again: {error}")
            return
        if [turn.user for turn in turns][:1] != [FIRST] or not turns[0].answer:
            self._violation(fault, "the first turn is lost")
        if (
            result is not None
            and fault.file in KV_FILES
            and (len(turns) != 2 or turns[1].answer != result.text)
        ):
            self._violation(fault, "the acknowledged answer is lost")

    def _violation(self, fault: Fault, what: str) -> None:
        self.report.violations.append(f"{fault}: {what}")


def all_faults(faults: Faults) -> list[Fault]:
    """Every n, for every error, kind of call and kind of file."""
    found = []
    for file in KV_FILES + KEPT_FILES:
        number = faults.count(file, EVERYTHING)
        syncs, moved = faults.count(file, SYNC), faults.count(file, READ | WRITE)
        found += [
            Fault(file, EVERYTHING, n, e, on)
            for n in range(1, number + 1)
            for e in ERRORS
            for on in (False, True)
        ]
        found += [Fault(file, SYNC, n, errno.EIO, on) for n in range(1, syncs + 1) for on in (False, True)]
        found += [Fault(file, READ | WRITE, n, SHORT, goes_on=False) for n in range(1, moved + 1)]
    return found


def main() -> int:
    """Exit status 1 when a promise was broken."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--runs", type=int, help="so many of the faults, drawn at random; all without it")
    options = parser.parse_args()
    os.environ["XDG_CONFIG_HOME"] = "/nonexistent"
    base, began = stress_home.memory_directory(_ROOM), time.monotonic()
    try:
        faults = Faults(base)
        chosen = all_faults(faults)
        if options.runs is not None:
            chosen = random.Random(options.seed).sample(chosen, min(options.runs, len(chosen)))
        for fault in chosen:
            faults.run(fault)
            if len(faults.report.violations) > 30:
                break
    finally:
        shutil.rmtree(base, ignore_errors=True)
    faults.report.seconds = time.monotonic() - began
    sys.stdout.write(json.dumps(vars(faults.report)) + "\n")
    return bool(faults.report.violations)


if __name__ == "__main__":
    sys.exit(main())
