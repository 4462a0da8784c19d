"""Keeps the search index up to date: reads kept conversations when somebody looks, newest first.

Knows the session and the index. Private conversations are never read.
"""

from __future__ import annotations

import asyncio
import contextlib
from typing import TYPE_CHECKING

from edgekv import EdgeKVError
from edgekv_tui.search.index import SearchIndex

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from edgekv_tui.search.index import Hit
    from edgekv_tui.session import Session


class SearchKeeper:
    """One index for a run; made when it is first asked for."""

    def __init__(self, session: Session) -> None:
        self._session = session
        self._index: SearchIndex | None = None
        self._versions: dict[str, tuple[float, int]] = {}

    @property
    def is_whole(self) -> bool:
        """Whether everything fitted into the index."""
        return self._index is None or self._index.is_whole

    async def refresh(self) -> AsyncIterator[tuple[int, int]]:
        """Read what is new or has changed; yields how many conversations of how many are done."""
        if self._index is None:
            self._index = SearchIndex()
        index = self._index
        infos = await self._session.infos(again=False)
        for name in index.names - {info.name for info in infos}:
            await asyncio.to_thread(index.remove, name)
        # Nobody else writes here: what changes in this run are this run's own answers.
        versions = {info.name: (info.created, self._session.num_answers(info.name)) for info in infos}
        changed = [name for name, version in versions.items() if self._versions.get(name) != version]
        for at, name in enumerate(changed):
            yield at, len(changed)
            await asyncio.to_thread(self._read, index, name)
            self._versions[name] = versions[name]
        yield len(changed), len(changed)

    async def find(self, words: str) -> list[Hit]:
        """Turns that have all `words`, of what was read so far."""
        return [] if self._index is None else await asyncio.to_thread(self._index.find, words)

    def close(self) -> None:
        """Free the memory."""
        if self._index is not None:
            self._index.close()

    def _read(self, index: SearchIndex, name: str) -> None:
        with contextlib.suppress(EdgeKVError):  # one that cannot be read is not found; the list says why
            index.add(name, self._session.runtime.conversation(name, read_only=True).turns())
