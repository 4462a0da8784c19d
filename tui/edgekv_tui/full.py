"""The entry point of the full-screen chat, as `edgekv chat` calls it."""

from __future__ import annotations

from typing import TYPE_CHECKING

from edgekv_tui.app import ChatApp
from edgekv_tui.session import Session

if TYPE_CHECKING:
    from edgekv import Config


def run(config: Config, name: str | None, *, private: bool = False) -> int:
    """Chat until the person leaves; returns the exit code."""
    session = Session(config, durable=not private)
    return ChatApp(session, name, private=private).run() or 0
