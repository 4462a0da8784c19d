"""Which reader a store gets: asked for, remembered from a trial on this drive, or `pread` until there was one.

Knows the backends by name and when a remembered choice still holds; not how they work. Trying costs half a
second and writes a file, so it never happens while a store is being opened.
"""

from __future__ import annotations

import importlib.metadata
import json
import logging
import os
import platform
import threading
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING

from edgekv_storage.errors import IoUnusable
from edgekv_storage.io.pread import NUM_THREADS, PreadReader
from edgekv_storage.io.trial import Trial, TrialStopped, try_drive
from edgekv_storage.io.uring import DEPTH, UringReader

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from edgekv_storage.io.protocol import Reader

IO_CHOICES = ("auto", "uring", "pread", "buffered")
FILE_NAME = "io.json"
_MAX_BYTES = 4096
_DELAY_SECONDS = 5.0  # what the user opened the store for comes first
_GAIN_OF_THREADS = 1.2  # uring takes less of the processor: threads must read this much faster
_proven: set[int] = set()  # drives on which io_uring worked in this process
_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Choice:
    """A backend and why, in words for `doctor`."""

    backend: str
    why: str
    trial: Trial | None = None
    is_unknown: bool = False


def choose(asked: str, data_dir: Path) -> Choice:
    """Quick: looks at what was asked for and what is remembered. See `require` for a forced uring."""
    if asked != "auto":
        return Choice(asked, "asked for")
    trial = recall(data_dir)
    if trial is None:
        return Choice("pread", "auto: io_uring was not tried on this drive yet", is_unknown=True)
    return judge(trial)


def judge(trial: Trial) -> Choice:
    """What the figures of a trial speak for."""
    if not trial.works:
        return Choice("pread", f"auto: io_uring cannot be used here: {trial.reason}", trial)
    speeds = f"{trial.uring / 1e6:.0f} MB/s by io_uring, {trial.pread / 1e6:.0f} by threads"
    if trial.pread > trial.uring * _GAIN_OF_THREADS:
        return Choice("pread", f"auto: faster on this drive ({speeds})", trial)
    return Choice("uring", f"auto: as fast as threads or faster, with less work ({speeds})", trial)


def require(asked: str, data_dir: Path) -> None:
    """Raises IoUnusable where `asked` is uring and that does not work; 0.1 s, once in a process and drive."""
    if asked != "uring":
        return
    drive = data_dir.stat().st_dev
    if drive in _proven:
        return
    trial = recall(data_dir)
    if trial is None or not trial.works:
        try:
            trial = try_drive(data_dir, only_works=True)
        except OSError as error:
            trial = Trial(works=False, reason=str(error.strerror))
    if not trial.works:
        raise IoUnusable(f"io_uring cannot be used here: {trial.reason}; choose --io auto or --io pread")
    _proven.add(drive)


def open_reader(
    data_dir: Path, asked: str, depth: int | None, notify: Callable[[str], None], *, may_try: bool
) -> tuple[Reader, Decider | None]:
    """The reader of a store, and what will try the drive for the next start, if `may_try` and need be.

    `notify` is told of a fallback. Raises IoUnusable where `asked` cannot be had.
    """
    require(asked, data_dir)
    choice = choose(asked, data_dir)
    decider = Decider(data_dir) if choice.is_unknown and may_try else None
    return make_reader(choice.backend, depth, notify), decider


def reader_name(backend: str) -> str:
    """What `doctor` shows of a reader with its usual depth, without making one."""
    return make_reader(backend, None, lambda _message: None).name  # nothing starts before the first job


def make_reader(backend: str, depth: int | None, notify: Callable[[str], None]) -> Reader:
    """`backend` is one of IO_CHOICES but auto; `depth` reads in flight at most, None for the backend's own."""
    if backend == "uring":
        return UringReader(depth or DEPTH, notify=notify)
    return PreadReader(depth or NUM_THREADS, use_direct=backend != "buffered")


# What is remembered: a file that anyone may have changed, so nothing in it is believed but plain figures


def _circumstances(data_dir: Path) -> dict[str, str]:
    """What a trial is worth nothing without: another kernel, package or drive is tried again."""
    try:
        package = importlib.metadata.version("liburing")
    except importlib.metadata.PackageNotFoundError:
        package = "missing"
    return {"kernel": platform.release(), "package": package, "drive": str(data_dir.stat().st_dev)}


def recall(data_dir: Path) -> Trial | None:
    """The trial made here before; None where there is none, it is not readable or no longer holds."""
    try:
        fd = os.open(data_dir / FILE_NAME, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK)
        with os.fdopen(fd, "rb") as file:
            stored = json.loads(file.read(_MAX_BYTES))
        if {name: stored.pop(name) for name in ("kernel", "package", "drive")} != _circumstances(data_dir):
            return None
        return Trial.checked(**stored)
    except (OSError, ValueError, TypeError, KeyError, AttributeError, RecursionError):
        return None


def remember(data_dir: Path, trial: Trial) -> None:
    """Replaces what was remembered. Raises OSError."""
    text = json.dumps(_circumstances(data_dir) | asdict(trial))
    new = data_dir / f"{FILE_NAME}.new"
    new.unlink(missing_ok=True)
    fd = os.open(new, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
    with os.fdopen(fd, "w", encoding="utf-8") as file:
        file.write(text)
    new.replace(data_dir / FILE_NAME)


class Decider:
    """Tries the drive in the background of a store that is open for a while; the next start profits."""

    def __init__(self, data_dir: Path, *, delay_seconds: float = _DELAY_SECONDS) -> None:
        self._data_dir = data_dir
        self._delay = delay_seconds
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="edgekv-io-trial", daemon=True)
        self._thread.start()

    def close(self) -> None:
        """Ends a trial under way; nothing is remembered then."""
        self._stop.set()
        if self._thread is not threading.current_thread():
            self._thread.join()

    def _run(self) -> None:
        if self._stop.wait(self._delay):
            return
        try:
            trial = try_drive(self._data_dir, stop=self._stop)
            remember(self._data_dir, trial)
        except TrialStopped:
            return
        except OSError as error:  # not remembered: tried again the next time
            _log.info("io_uring could not be tried: %s", error)
        else:
            _log.info("the next start reads by %s", judge(trial).why)
