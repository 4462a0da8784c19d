"""The entry point of the full-screen chat, as `edgekv chat` calls it."""

from __future__ import annotations

from typing import TYPE_CHECKING

from edgekv_tui.app import ChatApp
from edgekv_tui.session import Session
from edgekv_tui.settings import read_settings, settings_path

if TYPE_CHECKING:
    from edgekv import Config


def run(config: Config, name: str | None, *, private: bool = False) -> int:
    """Chat until the person leaves; returns the exit code. Raises ConfigError for a chat.toml without sense."""
    path = settings_path()
    session = Session(config, durable=not private)
    app = ChatApp(session, name, private=private, settings=read_settings(path), settings_file=path)
    code = app.run()
    if app.fatal_error is not None:
        raise app.fatal_error
    return code or app.return_code or 0
