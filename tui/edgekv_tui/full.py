"""The entry point of the full-screen chat, as `edgekv chat` calls it."""

from __future__ import annotations

import gc
import os
import threading
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from edgekv import Config


LONGEST_END_S = 5.0
FRAMES_PER_S = "120"
"""Textual draws one to two of these periods after the frame before: at its own 60 a letter waits up to 33 ms."""


def _end_soon(code: int) -> None:
    """The rest may take this long: all is kept, or nobody wants to wait for it. If the terminal is gone, Textual
    may wait for ever to write to it.
    """
    timer = threading.Timer(LONGEST_END_S, os._exit, [code])
    timer.daemon = True
    timer.start()


def run(config: Config, name: str | None, *, private: bool = False) -> int:
    """Chat until the person leaves; returns the exit code. Raises ConfigError for a chat.toml without sense."""
    # Until the first screen is drawn nothing is garbage, and looking for it among all that is loaded takes a tenth
    # of the start. So it begins afterwards, and what there is by then is not looked at again.
    thresholds = gc.get_threshold()
    gc.disable()
    try:
        return _run(config, name, private=private)
    finally:
        gc.set_threshold(*thresholds)
        gc.enable()


def _run(config: Config, name: str | None, *, private: bool) -> int:
    os.environ.setdefault("TEXTUAL_FPS", FRAMES_PER_S)  # read when Textual is imported
    from edgekv_tui.app import ChatApp  # noqa: PLC0415  the largest part of the start
    from edgekv_tui.quiet import begin_collecting, collect_all  # noqa: PLC0415
    from edgekv_tui.session import Session  # noqa: PLC0415
    from edgekv_tui.settings import read_settings, settings_path  # noqa: PLC0415

    path = settings_path()
    session = Session(config, durable=not private)
    app = ChatApp(session, name, private=private, settings=read_settings(path), settings_file=path)
    app.on_left = _end_soon
    app.on_drawn = begin_collecting
    app.on_quiet = collect_all
    code = app.run()
    if app.fatal_error is not None:
        raise app.fatal_error
    return code or app.return_code or 0
