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

    from edgekv import Turn
    from edgekv_tui.search.index import Hit
    from edgekv_tui.session import Session


class SearchKeeper:
    """One index for a run; made when it is first asked for."""

    def __init__(self, session: Session) -> None:
        self._session = session
        self._index: SearchIndex | None = None
        self._versions: dict[str, tuple[float, int, int]] = {}

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
        # Nobody else writes while the session is open: what changes are its own answers.
        num_opens = self._session.num_opens
        versions = {i.name: (i.created, num_opens, self._session.num_answers(i.name)) for i in infos}
        while changed := self._changed(index, versions):  # again where a full index had to forget all
            for at, name in enumerate(changed):
                yield at, len(changed)
                await self._read(index, name)
                self._versions[name] = versions[name]
        yield len(infos), len(infos)

    def _changed(self, index: SearchIndex, versions: dict[str, tuple[float, int, int]]) -> list[str]:
        return [
            n for n, version in versions.items() if n not in index.names or self._versions.get(n) != version
        ]

    async def find(self, words: str) -> list[Hit]:
        """Turns that have all `words`, of what was read so far."""
        return [] if self._index is None else await asyncio.to_thread(self._index.find, words)

    async def _read(self, index: SearchIndex, name: str) -> None:
        turns: list[Turn] = []
        with contextlib.suppress(EdgeKVError):  # one that cannot be read is not found; the list says why
            turns = await self._session.read(name)
        await asyncio.to_thread(index.add, name, turns)
