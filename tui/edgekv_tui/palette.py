"""The command palette's rows: the deeds, and every kept conversation by its name."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

from textual.command import DiscoveryHit, Hit, Provider

from edgekv_tui.deeds import DEEDS
from edgekv_tui.screens.chat import ChatScreen
from edgekv_tui.text import shown

if TYPE_CHECKING:
    from textual.command import Hits


class DeedProvider(Provider):
    """What can be done with the conversation on the screen."""

    async def discover(self) -> Hits:
        """All of it, before anything is typed."""
        screen = self.screen
        if isinstance(screen, ChatScreen):
            for deed in DEEDS:
                yield DiscoveryHit(deed.title, partial(screen.action_deed, deed.name), help=deed.help)

    async def search(self, query: str) -> Hits:
        """What matches `query`."""
        screen, matcher = self.screen, self.matcher(query)
        if isinstance(screen, ChatScreen):
            for deed in DEEDS:
                score = matcher.match(deed.title)
                if score > 0:
                    command = partial(screen.action_deed, deed.name)
                    yield Hit(score, matcher.highlight(deed.title), command, help=deed.help)
            for name in screen.session.known_names:
                score = matcher.match(name)
                if score > 0:
                    title = matcher.highlight(shown(name))
                    yield Hit(score, title, partial(screen.pick, name), help="Go to this conversation")
