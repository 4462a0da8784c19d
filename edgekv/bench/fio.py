"""fio beside us: what the same drive gives a C program, on the same files, at the same size and depth.

Knows fio's options and its JSON; measures nothing of ours. fio is optional: without it there is no peer.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

HOW_TO_GET = "fio is not installed, so there is no peer: install the package `fio` of your system"
_BEST_FIRST = ("io_uring", "libaio", "psync")
_FAST = {"io_uring": ("--fixedbufs=1", "--registerfiles=1")}
_LIMIT_SECONDS = 60
_HUGE_PAGES = {"GLIBC_TUNABLES": "glibc.malloc.hugetlb=1"}  # for its buffers, as ours are


@dataclass(frozen=True, slots=True)
class Pace:
    """Bytes per second, and processor seconds (user and system) per second."""

    bytes_per_s: float
    cpu_share: float


@dataclass(frozen=True, slots=True)
class Fio:
    """A working fio."""

    program: str
    engine: str
    version: str

    def read(self, files: Sequence[Path], size: int, depth: int, seconds: float) -> Pace | None:
        """Random direct reads over all files for so long; None where fio failed."""
        options = (
            "--rw=randread",
            "--readonly",
            "--direct=1",
            f"--bs={size}",
            f"--iodepth={depth}",
            "--time_based",
            f"--runtime={round(seconds * 1000)}ms",
            f"--filename={':'.join(str(file).replace(':', chr(92) + ':') for file in files)}",
        )
        fast = _FAST.get(self.engine, ())  # needs locked memory, which not everyone may have
        return self._run(*options, *fast, kind="read") or self._run(*options, kind="read")

    def append(self, file: Path, size: int, total: int) -> Pace | None:
        """Writes a new file from its start to its end, `size` bytes at a time, then waits for the drive."""
        return self._run(
            "--rw=write",
            "--direct=1",
            "--iodepth=32",
            f"--bs={size}",
            f"--size={total}",
            "--fallocate=keep",
            "--end_fsync=1",
            f"--filename={str(file).replace(':', chr(92) + ':')}",
            kind="write",
        )

    def _run(self, *options: str, kind: str) -> Pace | None:
        command = [self.program, "--name=peer", f"--ioengine={self.engine}", "--output-format=json", *options]
        try:
            done = subprocess.run(  # noqa: S603
                command,
                capture_output=True,
                timeout=_LIMIT_SECONDS,
                check=True,
                text=True,
                env=os.environ | _HUGE_PAGES,
            )
            job = json.loads(done.stdout[done.stdout.index("{") :])["jobs"][0]
        except (OSError, subprocess.SubprocessError, ValueError, LookupError):
            return None
        return _pace(job, kind)


def _pace(job: dict[str, Any], kind: str) -> Pace | None:
    done = job[kind]
    seconds = done["runtime"] / 1000
    if kind == "write" and seconds:  # fio's own rate leaves out the wait for the drive at the end
        seconds = max(seconds, job["job_runtime"] / 1000)
    if not seconds:
        return None
    return Pace(done["io_bytes"] / seconds, (job["usr_cpu"] + job["sys_cpu"]) / 100)


def find_fio() -> Fio | None:
    """Fio with the best engine it has here, None where it is not installed."""
    program = shutil.which("fio")
    if program is None:
        return None
    version = _output(program, "--version")
    engines = _output(program, "--enghelp").split()
    engine = next((name for name in _BEST_FIRST if name in engines), None)
    return None if engine is None else Fio(program, engine, version)


def _output(*command: str) -> str:
    try:
        return subprocess.run(command, capture_output=True, timeout=10, check=True, text=True).stdout.strip()  # noqa: S603
    except (OSError, subprocess.SubprocessError):
        return ""
