"""Running the probe: a child process with a time limit, on a file of the drive in question.

Knows processes and what the child's answers mean; not what is chosen then. A child that crashes, hangs or is
not allowed to start is an answer too: io_uring is not to be used.
"""

from __future__ import annotations

import contextlib
import errno
import json
import os
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import threading

_PROBE = Path(__file__).with_name("probe.py")
_FILE_BYTES = 32 << 20
_NEEDED_BYTES = 1 << 30  # of free room, before a file is made just to try something
_WORKS_SECONDS = 2.0
_RATES_SECONDS = 3.0
_NICE = 10
_REASON_CHARS = 200


class TrialStopped(Exception):
    """The store is being closed."""


@dataclass(frozen=True, slots=True)
class Trial:
    """Whether io_uring works, else `reason`; bytes per second of random 256 KiB direct reads, 0 not measured."""

    works: bool
    reason: str = ""
    uring: float = 0.0
    pread: float = 0.0

    @classmethod
    def checked(cls, works: object, reason: object, uring: object, pread: object) -> Trial:
        """From values of unknown origin. Raises ValueError."""
        if not isinstance(works, bool) or not isinstance(reason, str) or len(reason) > _REASON_CHARS:
            raise ValueError("no trial")
        if not reason.isprintable():  # it is shown on a terminal
            raise ValueError("no trial")
        return cls(works, reason, _rate(uring), _rate(pread))


def _rate(value: object) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value < 1e13:
        raise ValueError("no rate")
    return float(value)


def try_drive(folder: Path, *, only_works: bool = False, stop: threading.Event | None = None) -> Trial:
    """Tries in a folder, with a temporary file that has no name.

    Raises TrialStopped; OSError where nothing could be found out: no room, a child that could not be started
    or did not answer in time.
    """
    room = os.statvfs(folder)
    if room.f_bavail * room.f_frsize < _NEEDED_BYTES:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    with tempfile.TemporaryFile(dir=folder) as file:
        block = os.urandom(1 << 20)
        for _ in range(1 if only_works else _FILE_BYTES >> 20):
            file.write(block)
        file.flush()
        os.fdatasync(file.fileno())
        return _run(file.fileno(), only_works, stop)


def try_file(path: Path, *, only_works: bool = False) -> Trial:
    """Tries with a file of at least 1 MiB that is there already; it is only read. Raises OSError."""
    with path.open("rb") as file:
        return _run(file.fileno(), only_works, None)


def _run(fd: int, only_works: bool, stop: threading.Event | None) -> Trial:
    command = [sys.executable or "python3", "-P", str(_PROBE), f"/proc/self/fd/{fd}"]
    child = subprocess.Popen(  # noqa: S603  our own program
        command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, pass_fds=(fd,)
    )
    try:
        with contextlib.suppress(OSError):
            os.setpriority(os.PRIO_PROCESS, child.pid, _NICE)
        return _listen(child, only_works, stop)
    finally:
        child.kill()
        child.communicate()


def _listen(child: subprocess.Popen[bytes], only_works: bool, stop: threading.Event | None) -> Trial:
    first = _answer(child, _WORKS_SECONDS, stop)
    if first is None:
        return Trial(works=False, reason=f"the process that tried it ended with code {child.wait()}")
    works, reason = first.get("works") is True, str(first.get("reason", ""))[:_REASON_CHARS]
    if only_works:
        return Trial(works, reason)
    rates = _answer(child, _RATES_SECONDS, stop)
    if rates is None:
        return Trial(works=False, reason=f"the process that measured it ended with code {child.wait()}")
    return Trial.checked(works, reason, rates.get("uring", 0.0), rates.get("pread", 0.0))


def _answer(
    child: subprocess.Popen[bytes], seconds: float, stop: threading.Event | None
) -> dict[str, Any] | None:
    """The next line the child prints; None where it ended without. Raises TimeoutError, TrialStopped."""
    assert child.stdout is not None
    fd, data, end = child.stdout.fileno(), b"", time.monotonic() + seconds
    os.set_blocking(fd, False)
    while not data.endswith(b"\n"):
        if time.monotonic() > end:
            raise TimeoutError(errno.ETIMEDOUT, f"the process that tries it took longer than {seconds:.0f} s")
        if stop is not None and stop.is_set():
            raise TrialStopped
        try:
            byte = os.read(fd, 1)  # byte by byte: the line after this one is not ours to take yet
        except OSError as error:
            if error.errno != errno.EAGAIN:
                return None
            time.sleep(0.005)
            continue
        if not byte:
            return None
        data += byte
    answer = json.loads(data)
    assert isinstance(answer, dict), "our own program"
    return answer
