"""Signals as exceptions in the main thread, so that every `with` closes and partial answers are kept.

Knows exit codes. Only the command line installs handlers; the library never does.
"""

from __future__ import annotations

import signal
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from types import FrameType

EXIT_FAILURE = 1
EXIT_USAGE = 2
EXIT_INTERRUPTED = 128 + signal.SIGINT
EXIT_PIPE = 128 + signal.SIGPIPE
EXIT_TERMINATED = 128 + signal.SIGTERM


class Terminated(BaseException):
    """SIGTERM or SIGHUP arrived; like KeyboardInterrupt no ordinary `except` stops it."""


class ReaderGone(BaseException):
    """Whoever read stdout closed it; nothing is wrong and nothing is left to say."""


def install() -> None:
    """Turn SIGTERM and SIGHUP into Terminated and SIGINT into KeyboardInterrupt, also where the parent ignored it
    (scripts start background programs so): whoever sends one means it.
    """
    signal.signal(signal.SIGINT, signal.default_int_handler)
    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, _terminate)


def _terminate(_number: int, _frame: FrameType | None) -> None:
    raise Terminated


def exit_code(stop: BaseException) -> int:
    """The exit code of a program that `stop` ended."""
    return EXIT_TERMINATED if isinstance(stop, Terminated) else EXIT_INTERRUPTED
