"""What a data directory keeps, for who has no Runtime: listed and forgotten without a model."""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING

from edgekv.conversation.journal import translated
from edgekv.conversation.library import Library
from edgekv.conversation.unlock import Unlock
from edgekv.errors import ConversationError

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from edgekv.conversation.library import ConversationInfo
    from edgekv_storage.backup import Copied

ENCRYPTED = Unlock()


@contextmanager
def opened(path: Path, unlock: Unlock = ENCRYPTED, *, is_writable: bool = False) -> Iterator[Library]:
    """The library of the data directory at `path`; takes the lock only where it shall be written."""
    from edgekv_storage import DataDir  # noqa: PLC0415  numpy comes with it

    open_directory = DataDir.open if is_writable else DataDir.open_read_only
    with translated(), open_directory(path) as data_dir, Library(data_dir, unlock.open(data_dir)) as library:
        yield library


def kept_conversations(path: Path, unlock: Unlock = ENCRYPTED) -> list[ConversationInfo]:
    """What the data directory at `path` keeps; needs no model and no lock, creates nothing."""
    if not (path / "transcripts.db").exists():
        return []
    with opened(path, unlock) as library:
        return library.infos()


def require_kept(path: Path, name: str, unlock: Unlock = ENCRYPTED) -> None:
    """ConversationError if the data directory at `path` keeps no `name`; takes no lock, creates nothing."""
    if not (path / "transcripts.db").exists():
        raise ConversationError(f"no conversation is called {name!r}; none is kept in {path}")
    with opened(path, unlock) as library:
        library.require(name)


def forget_kept(path: Path, name: str, unlock: Unlock = ENCRYPTED) -> list[str]:
    """Destroy conversation `name` of the data directory at `path`, key, KV and transcript, without a model.

    Returns what could not be deleted, though nobody can read it, one line each.
    """
    with opened(path, unlock, is_writable=True) as library:
        return library.forget(name)


def back_up(path: Path, target: Path, *, with_kv: bool = False) -> Copied:
    """Copy the data directory at `path` into the new folder `target`; see edgekv_storage.backup."""
    from edgekv_storage import backup  # noqa: PLC0415  numpy comes with it

    with translated():
        return backup.back_up(path, target, with_kv=with_kv)


def restore(source: Path, path: Path) -> Copied:
    """Put a backup into the new data directory `path`."""
    from edgekv_storage import backup  # noqa: PLC0415  numpy comes with it

    with translated():
        return backup.restore(source, path)
