"""The parent's side of the template sandbox: starts the child, waits no longer than allowed, kills it.

Knows processes, pipes and limits. Does not know messages or what a template should say.
"""

from __future__ import annotations

import json
import os
import select
import struct
import subprocess
import sys
import threading
import time
import weakref
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from edgekv.errors import TemplateError

_LENGTH = struct.Struct("<Q")
_WORKER = Path(__file__).with_name("template_worker.py")
_START_SECONDS = 15.0  # a cold disk has to read Python and jinja2


@dataclass(frozen=True, slots=True)
class TemplateLimits:
    """What one rendering may use: seconds on the clock, the child's memory, characters beyond the input's."""

    seconds: float = 2.0
    memory_bytes: int = 512 << 20
    output_chars: int = 1 << 20


class TemplateRefusedError(TemplateError):
    """The template itself refused the messages (raise_exception)."""


class TemplateProcess:
    """Renders one template in a child that is started at the first use and again after it had to be killed.

    Any thread may call `render`; calls take turns.
    """

    def __init__(self, source: str, limits: TemplateLimits) -> None:
        self._source = source
        self._limits = limits
        self._lock = threading.Lock()
        self._child: subprocess.Popen[bytes] | None = None
        self._finalizer: weakref.finalize[[subprocess.Popen[bytes]], TemplateProcess] | None = None

    def render(self, jobs: list[dict[str, Any]]) -> list[str]:
        """The texts of `jobs` ({variables, now}), in order.

        Raises:
            TemplateRefusedError: the template called raise_exception.
            TemplateError: it failed, took too long, grew too large, or no child could be started.
        """
        request = _frame({"jobs": jobs})
        with self._lock:
            child = self._child
            if child is None or child.poll() is not None:
                child = self._start()
            try:
                most = 6 * (len(request) + len(jobs) * self._limits.output_chars) + 4096  # JSON escapes
                reply = _exchange(child, request, time.monotonic() + self._limits.seconds, most)
            except TimeoutError:
                self._stop()
                raise _failed(f"it ran longer than {self._limits.seconds:g} s and was stopped") from None
            except (OSError, ValueError) as error:
                self._stop()
                raise _failed(f"its process died ({error})") from None
        if "error" in reply:
            kind = TemplateRefusedError if reply["refused"] else TemplateError
            raise _failed(str(reply["error"]), kind)
        return [str(text) for text in reply["texts"]]

    def close(self) -> None:
        """End the child; a later `render` would start another."""
        with self._lock:
            self._stop()

    def _start(self) -> subprocess.Popen[bytes]:
        self._stop()
        environment = {"PYTHONPATH": os.pathsep.join(filter(None, sys.path)), "PYTHONDONTWRITEBYTECODE": "1"}
        try:
            child = subprocess.Popen(  # noqa: S603  # our own script, no shell, no words of anybody else
                [sys.executable, "-P", "-S", str(_WORKER)],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
                env=environment,
                start_new_session=True,
                bufsize=0,
            )
        except OSError as error:
            raise _failed(f"its process cannot be started ({error.strerror})") from None
        self._child = child
        self._finalizer = weakref.finalize(self, _end, child)
        limits = self._limits
        assert child.stdin is not None
        assert child.stdout is not None
        os.set_blocking(child.stdin.fileno(), False)
        os.set_blocking(child.stdout.fileno(), False)
        setup = {
            "source": self._source,
            "memory_bytes": limits.memory_bytes,
            "cpu_seconds": int(limits.seconds) + 1,
            "output_chars": limits.output_chars,
        }
        try:
            deadline = time.monotonic() + _START_SECONDS
            _send(child, _frame(setup), deadline)
            _exchange(child, _frame({"jobs": []}), deadline, 1 << 16)  # compiled: the clock starts after this
        except (OSError, ValueError) as error:
            self._stop()
            raise _failed(f"its process cannot be started ({error})") from None
        return child

    def _stop(self) -> None:
        if self._finalizer is not None:
            self._finalizer()
        self._child = self._finalizer = None


def _end(child: subprocess.Popen[bytes]) -> None:
    child.kill()
    for pipe in (child.stdin, child.stdout):
        if pipe is not None:
            pipe.close()
    child.wait()


def _frame(value: object) -> bytes:
    data = json.dumps(value).encode()
    return _LENGTH.pack(len(data)) + data


def _exchange(child: subprocess.Popen[bytes], request: bytes, deadline: float, most: int) -> dict[str, Any]:
    _send(child, request, deadline)
    length = _LENGTH.unpack(_receive(child, _LENGTH.size, deadline))[0]
    if length > most:
        raise ValueError(f"it answered {length} bytes")
    reply: dict[str, Any] = json.loads(_receive(child, length, deadline))
    return reply


def _send(child: subprocess.Popen[bytes], data: bytes, deadline: float) -> None:
    assert child.stdin is not None
    view = memoryview(data)
    while view:
        _wait(child.stdin.fileno(), select.POLLOUT, deadline)
        view = view[os.write(child.stdin.fileno(), view[:65536]) :]


def _receive(child: subprocess.Popen[bytes], num_bytes: int, deadline: float) -> bytes:
    assert child.stdout is not None
    parts = bytearray()
    while len(parts) < num_bytes:
        _wait(child.stdout.fileno(), select.POLLIN, deadline)
        part = os.read(child.stdout.fileno(), num_bytes - len(parts))
        if not part:
            raise OSError("killed for using too much processor time or memory")
        parts += part
    return bytes(parts)


def _wait(descriptor: int, event: int, deadline: float) -> None:
    poll = select.poll()
    poll.register(descriptor, event)
    left = deadline - time.monotonic()
    if left <= 0 or not poll.poll(left * 1000):
        raise TimeoutError


def _failed(reason: str, kind: type[TemplateError] = TemplateError) -> TemplateError:
    return kind(f"the model's chat template failed: {reason}; use another file of this model")
