"""How the chat looks and which keys do what: chat.toml in the user's configuration folder.

    theme = "ansi-dark"        # any theme of the palette

    [keys]                     # F1 shows the names
    "chat.stop" = "f9"         # several: "escape,f9"

Knows that file. Unknown entries are errors: a misspelt one never does nothing.
"""

from __future__ import annotations

import difflib
import os
import re
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec
import platformdirs

from edgekv import ConfigError

if TYPE_CHECKING:
    from collections.abc import Collection

FILE_NAME = "chat.toml"
_THEME_LINE = re.compile(r"^[ \t]*theme[ \t]*=.*$", re.MULTILINE)


class Settings(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What chat.toml may say."""

    theme: str | None = None
    keys: dict[str, str] = {}


def settings_path() -> Path:
    """Where chat.toml lies, if there is one."""
    return Path(platformdirs.user_config_dir("edgekv", appauthor=False), FILE_NAME)


def read_settings(path: Path) -> Settings:
    """What the file says; the defaults where there is none. Raises ConfigError."""
    try:
        return msgspec.toml.decode(path.read_bytes(), type=Settings)
    except FileNotFoundError:
        return Settings()
    except OSError as error:
        raise ConfigError(f"cannot read {path}: {error.strerror or error}") from error
    except (msgspec.MsgspecError, UnicodeDecodeError, ValueError) as error:
        raise ConfigError(f"{path}: {error}") from error


def check(settings: Settings, themes: Collection[str], keys: Collection[str]) -> None:
    """ConfigError for a theme or the name of a key that does not exist."""
    if settings.theme is not None and settings.theme not in themes:
        raise ConfigError(
            f"{FILE_NAME}: no theme is called {settings.theme!r}{_hint(settings.theme, themes)}"
        )
    for name in settings.keys:
        if name not in keys:
            raise ConfigError(f"{FILE_NAME}: no key is called {name!r}{_hint(name, keys)}")


def save_theme(path: Path, theme: str) -> None:
    """Put `theme` into the file and leave the rest as it is. Raises OSError."""
    path.parent.mkdir(parents=True, exist_ok=True)
    text = path.read_text("utf-8") if path.exists() else ""
    line = f'theme = "{theme}"'
    if not _THEME_LINE.search(text):
        text = f"{line}\n{text}"
    new = path.with_suffix(f".{os.getpid()}")
    new.write_text(_THEME_LINE.sub(line, text, count=1), "utf-8")
    new.replace(path)


def _hint(name: str, known: Collection[str]) -> str:
    close = difflib.get_close_matches(name, known, n=1)
    return f"; did you mean {close[0]!r}?" if close else ""
