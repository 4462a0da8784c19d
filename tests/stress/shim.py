"""The shim of disk_shim.c: compiled once, put in front of libc, and controlled from Python.

Knows the C file's functions and its trace's form; not what is done with them.
"""

from __future__ import annotations

import ctypes
import hashlib
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

OPEN, READ, WRITE, RESIZE, RESERVE, SYNC, NAME = 1, 2, 4, 8, 16, 32, 64
CHANGES = WRITE | RESIZE | RESERVE | SYNC | NAME
EVERYTHING = CHANGES | OPEN | READ
_SOURCE = Path(__file__).with_name("disk_shim.c")


def build() -> Path | None:
    """The compiled shim; None where there is no C compiler (say so: nothing below it is tested then)."""
    compiler = shutil.which("gcc") or shutil.which("cc")
    if compiler is None or sys.platform != "linux":
        return None
    source = _SOURCE.read_bytes()
    name = f"edgekv-shim-{os.getuid()}-{hashlib.blake2b(source, digest_size=8).hexdigest()}.so"
    target = Path(tempfile.gettempdir()) / name
    if not target.exists():
        made = target.with_suffix(f".{os.getpid()}")
        command = [compiler, "-O2", "-shared", "-fPIC", "-o", str(made), str(_SOURCE), "-ldl", "-lpthread"]
        subprocess.run(command, check=True, capture_output=True, timeout=60)
        made.rename(target)
    return target


def environment(library: Path | None) -> dict[str, str]:
    """Environment of a Python that finds our packages, these modules, and the shim before libc."""
    paths = [str(Path(__file__).parent), *sys.path]
    inherited = {**os.environ, "PYTHONPATH": os.pathsep.join(dict.fromkeys(paths))}
    return inherited if library is None else {**inherited, "LD_PRELOAD": str(library)}


class Shim:
    """Controls of the shim this process runs under; `is_there` tells whether it does."""

    def __init__(self) -> None:
        self._library = ctypes.CDLL(None)
        self.is_there = hasattr(self._library, "shim_watch")

    def watch(self, directory: Path, only: str = "") -> None:
        """Everything below applies to files below `directory`, opened from now on, with `only` in their path."""
        self._library.shim_watch(str(directory).encode())
        self._library.shim_only(only.encode())

    def trace_to(self, fd: int) -> None:
        """Writes down changes; -1 ends that."""
        self._library.shim_trace(fd)

    def mark(self, data: bytes) -> None:
        """Puts a message between the changes."""
        self._library.shim_mark(data, ctypes.c_long(len(data)))

    def fail(self, kinds: int, nth: int, error: int, *, from_then_on: bool = False) -> None:
        """Fails the `nth` call of these kinds with an errno; 0: only half of its bytes. nth 0: none."""
        self._library.shim_fail(kinds, ctypes.c_long(nth), error, int(from_then_on))

    def kill(self, kinds: int, nth: int, *, after: bool) -> None:
        """SIGKILL before or after the `nth` call of these kinds."""
        self._library.shim_kill(kinds, ctypes.c_long(nth), int(after))

    def count(self, kinds: int) -> None:
        """Starts counting calls of these kinds."""
        self._library.shim_count(kinds)

    @property
    def counted(self) -> int:
        """Calls since `count`."""
        return int(self._library.shim_counted())

    @property
    def failed(self) -> int:
        """Calls that were made to fail since `fail`."""
        return int(self._library.shim_failed())
