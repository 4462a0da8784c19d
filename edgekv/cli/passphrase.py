"""Asking for a passphrase: on a terminal, unseen, never on the command line."""

from __future__ import annotations

import getpass
import sys
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable


def asker() -> Callable[[str], str] | None:
    """Who asks, None where nobody can answer (the environment may still hold it)."""
    return _ask if sys.stdin is not None and sys.stdin.isatty() else None


def _ask(question: str) -> str:
    return getpass.getpass(f"{question}: ", stream=sys.stderr)
