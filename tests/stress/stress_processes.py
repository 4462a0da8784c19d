"""Processes of a campaign: forked before there is any thread, answering through pipes.

Knows processes; not what they do.
"""

from __future__ import annotations

import json
import os
import select
import time
import traceback
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable

_LONGEST_S = 36_000


def fork(work: Callable[[int], None]) -> tuple[int, int]:
    """Runs `work` in a child with the writing end of a pipe; (its id, the reading end)."""
    reading, writing = os.pipe()
    pid = os.fork()
    if pid:
        os.close(writing)
        return pid, reading
    try:
        os.close(reading)
        work(writing)
    except BaseException:
        os.write(2, traceback.format_exc().encode())
        os._exit(1)
    os._exit(0)


def drain(fd: int, until: float, mark: bytes | None = None) -> bytes:
    """What comes through a pipe until its end, a time (monotonic) or a message that begins with `mark`."""
    parts: list[bytes] = []
    while (left := until - time.monotonic()) > 0:
        if select.select([fd], [], [], left)[0]:
            part = os.read(fd, 1 << 16)
            if not part:
                break
            parts.append(part)
            if mark is not None and mark in part:
                break
    return b"".join(parts)


def send(fd: int, answer: object) -> None:
    """The whole answer as JSON, however long."""
    data = json.dumps(answer).encode()
    while data:
        data = data[os.write(fd, data) :]


def parallel(works: list[Callable[[], dict[str, Any]]]) -> list[dict[str, Any]]:
    """What each work returns, each done in a process of its own. Raises RuntimeError where one died."""
    started = [fork(lambda fd, work=work: send(fd, work())) for work in works]
    answers = []
    for pid, fd in started:
        answer = drain(fd, time.monotonic() + _LONGEST_S)
        _, status = os.waitpid(pid, 0)
        os.close(fd)
        if not answer:
            raise RuntimeError(f"a worker died with status {status}; its traceback is on stderr")
        answers.append(json.loads(answer))
    return answers
