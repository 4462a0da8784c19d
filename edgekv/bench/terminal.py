"""A program in a terminal of its own: keys in, what it draws out. Knows pseudo-terminals and clocks only."""

from __future__ import annotations

import fcntl
import os
import pty
import select
import signal
import struct
import subprocess
import termios
import time
from typing import TYPE_CHECKING, Self

from edgekv.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from types import TracebackType

PATIENCE_S = 120.0
READ_BYTES = 1 << 16
END_S = 20.0


class Terminal:
    """`command` in a terminal of `columns` by `rows`; ended when the `with` is left."""

    def __init__(
        self, command: Sequence[str], environ: Mapping[str, str], *, columns: int = 80, rows: int = 24
    ) -> None:
        self.began = time.perf_counter()
        self._screen, inside = pty.openpty()
        fcntl.ioctl(inside, termios.TIOCSWINSZ, struct.pack("HHHH", rows, columns, 0, 0))
        environ = {**environ, "TERM": "xterm-256color", "COLORTERM": "truecolor"}
        self._process = subprocess.Popen(  # noqa: S603  our own interpreter and module
            command, env=environ, stdin=inside, stdout=inside, stderr=inside, start_new_session=True
        )
        os.close(inside)
        self.drawn = b""

    def press(self, keys: str) -> None:
        """Send keys as a terminal does; forgets what was drawn before."""
        self.drawn = b""
        os.write(self._screen, keys.encode())

    def wait_for(self, *texts: str, patience_s: float = PATIENCE_S) -> float:
        """Read until one of `texts` is drawn; the moment (time.perf_counter()) when it was.

        Raises ConfigError with the end of what was drawn if it does not come.
        """
        wanted = [text.encode() for text in texts]
        deadline = time.perf_counter() + patience_s
        while not any(text in self.drawn for text in wanted):
            if not self.read(deadline - time.perf_counter()):
                end = self.drawn[-300:].decode(errors="replace")
                raise ConfigError(
                    f"the program did not show {' or '.join(texts)!r}; the last it drew: {end!r}"
                )
        return time.perf_counter()

    def read(self, seconds: float) -> bool:
        """Take what is drawn within `seconds`, at least once; False if nothing came or the program ended."""
        ready, _, _ = select.select([self._screen], [], [], max(0.0, seconds))
        if not ready:
            return False
        try:
            new = os.read(self._screen, READ_BYTES)
        except OSError:  # the other side is closed
            return False
        self.drawn += new
        return bool(new)

    def rest(self, seconds: float) -> None:
        """Go on reading for so long."""
        end = time.perf_counter() + seconds
        while (left := end - time.perf_counter()) > 0:
            if not self.read(left):
                time.sleep(min(0.005, max(0.0, end - time.perf_counter())))

    def close(self) -> None:
        """Ask it to end, as a closed window does; kill it if it does not."""
        if self._process.poll() is None:
            self._process.send_signal(signal.SIGTERM)
            deadline = time.perf_counter() + END_S
            while self._process.poll() is None and time.perf_counter() < deadline:
                self.read(0.05)
        if self._process.poll() is None:
            self._process.kill()
        self._process.wait()
        os.close(self._screen)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()
