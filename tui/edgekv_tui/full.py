"""The entry point of the full-screen chat, as `edgekv chat` calls it."""

from __future__ import annotations

import os
import threading
from typing import TYPE_CHECKING

from edgekv_tui.app import ChatApp
from edgekv_tui.session import Session
from edgekv_tui.settings import read_settings, settings_path

if TYPE_CHECKING:
    from edgekv import Config


LONGEST_END_S = 5.0


def _end_soon(code: int) -> None:
    """The rest may take this long: all is kept, or nobody wants to wait for it. If the terminal is gone, Textual
    may wait for ever to write to it.
    """
    timer = threading.Timer(LONGEST_END_S, os._exit, [code])
    timer.daemon = True
    timer.start()


def run(config: Config, name: str | None, *, private: bool = False) -> int:
    """Chat until the person leaves; returns the exit code. Raises ConfigError for a chat.toml without sense."""
    path = settings_path()
    session = Session(config, durable=not private)
    app = ChatApp(session, name, private=private, settings=read_settings(path), settings_file=path)
    app.on_left = _end_soon
    code = app.run()
    if app.fatal_error is not None:
        raise app.fatal_error
    return code or app.return_code or 0
