"""What a data directory keeps, opened without a model: listed, read, searched, exported, renamed, forgotten.

For whoever has no model at hand, or none that loads. Knows the data directory and its keys; answers nothing.
"""

from __future__ import annotations

import weakref
from typing import TYPE_CHECKING, Self, Unpack

from edgekv.config import load_config
from edgekv.conversation.conversation import Conversation
from edgekv.conversation.exchange import export_lines, import_lines
from edgekv.conversation.opening import close_files, open_files
from edgekv.conversation.unlock import Unlock
from edgekv.errors import Closed, ConversationError, StoreError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable
    from pathlib import Path
    from types import TracebackType

    from edgekv.config import Config, Options
    from edgekv.conversation.library import ConversationInfo, Library
    from edgekv.conversation.stream import Generation
    from edgekv.engine.request import Expect


class _NoEngine:
    """Stands where a Runtime's conversations have its engine."""

    def submit(self, generation: Generation, prepare: Callable[[], None]) -> None:  # noqa: ARG002
        raise AssertionError("a conversation with a refusal asks for nothing")

    def where(self, sequence_id: bytes) -> str:  # noqa: ARG002  none of it is in memory
        return ""

    def hint(self, sequence_id: bytes, expect: Expect, ttl_s: float | None) -> None:
        """Nothing of it is in memory."""

    def check_usable(self) -> None:
        """Reading turns needs nothing that could be closed."""

    def take_notices(self) -> list[str]:
        return []


REFUSAL = "this conversation was opened without a model, to be read only; a Runtime goes on with it"


class Archive:
    """The kept conversations of a data directory, with no model loaded. Any thread; a context manager.

    Options, `config` and `passphrase` are those of `Runtime`; only those that say where the data is and how it is
    unlocked count. A directory that keeps nothing yet is empty, and nothing is made in it. Where another process
    uses it, or it cannot be written, it can be read: `degraded` says why. Raises StoreError for one that cannot
    even be read, or whose keys cannot be had.
    """

    def __init__(
        self,
        *,
        config: Config | None = None,
        passphrase: Callable[[str], str] | str | None = None,
        **options: Unpack[Options],
    ) -> None:
        self.config = load_config(options) if config is None else config.replace(options)
        self.degraded: str | None = None
        self._library: Library | None = None
        data_dir = None
        if _is_there(self.config.data_dir / "transcripts.db"):
            unlock = Unlock.of(self.config, passphrase)
            data_dir, self._library, self.degraded = open_files(self.config.data_dir, unlock)
            if self._library is None:
                raise StoreError(f"no conversation can be read: {self.degraded}")
        self._closer = weakref.finalize(self, close_files, self._library, data_dir)

    def conversations(self) -> list[ConversationInfo]:
        """The kept conversations, last used first."""
        self._check_open()
        return [] if self._library is None else self._library.infos()

    def names(self) -> list[str]:
        """Their names; unlike `conversations` it reads none of their turns."""
        self._check_open()
        return [] if self._library is None else self._library.names()

    def conversation(self, name: str) -> Conversation:
        """One of them, to be read: a new object each time. ConversationError if there is none.

        Damaged turns are marked as such. `switch` goes to another branch of what is read, and keeps nothing.
        """
        library = self._require(name)
        found = library.find(name)
        assert found is not None, "it was required a line above"
        journal = library.journal(name, read_only=True)
        return Conversation(
            found,
            front=None,
            config=self.config,
            journal=journal,
            executor=_NoEngine(),
            private=False,
            refusal=REFUSAL,
        )

    def export_conversation(self, name: str) -> list[str]:
        """A kept conversation as JSON lines (not encrypted). ConversationError if there is none."""
        return list(export_lines(self._require(name), name))

    def import_conversation(self, lines: Iterable[str], name: str | None = None) -> str:
        """Keep what `export_conversation` gave, under its own or another name, which is returned."""
        self._check_open()
        return import_lines(self._writable(), lines, name)

    def rename(self, name: str, new_name: str) -> None:
        """Give a conversation another name. ConversationError where that name is taken or unusable."""
        self._require(name)
        self._writable().rename(name, new_name)

    def forget(self, name: str) -> list[str]:
        """Destroy a conversation: key, KV and transcript. ConversationError if there is none.

        Returns what could not be deleted, though nobody can read it, one line each.
        """
        self._require(name)
        return self._writable().forget(name)

    def close(self) -> None:
        """Close the files and give back the directory's lock. Again: nothing."""
        self._closer()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def _require(self, name: str) -> Library:
        self._check_open()
        if self._library is None:
            raise ConversationError(f"no conversation is called {name!r}; none is kept yet")
        self._library.require(name)
        return self._library

    def _writable(self) -> Library:
        if self._library is None:
            raise StoreError(f"nothing is kept in {self.config.data_dir} yet: a Runtime begins it")
        if self.degraded is not None:
            raise StoreError(f"{self.degraded}; as it is, conversations can be read only")
        return self._library

    def _check_open(self) -> None:
        if not self._closer.alive:
            raise Closed("the Archive is closed; open a new one")


def _is_there(path: Path) -> bool:
    """Raises StoreError where that cannot even be seen."""
    try:
        return path.exists()
    except OSError as error:
        raise StoreError(f"cannot look into {path.parent}: {error.strerror}; choose --data-dir") from error
