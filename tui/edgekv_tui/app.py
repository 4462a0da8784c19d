"""The full-screen chat: opens the session behind the first screen, and says what went wrong if it does not open.

Knows screens and the session. The terminal is Textual's; everything about conversations is the session's.
"""

from __future__ import annotations

import asyncio
import signal
import threading
from typing import TYPE_CHECKING, ClassVar

from textual.app import App
from textual.binding import Binding

from edgekv import EdgeKVError
from edgekv_tui.screens.chat import ChatScreen
from edgekv_tui.screens.dialogs import Ask

if TYPE_CHECKING:
    from textual.binding import BindingType

    from edgekv_tui.session import Session


class ChatApp(App[int]):
    """One window over one session; its result is the program's exit code."""

    CSS_PATH = "edgekv.tcss"
    TITLE = "edgekv"
    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("ctrl+q", "quit", "Quit", priority=True, id="app.quit"),
    ]

    def __init__(self, session: Session, name: str | None = None, *, private: bool = False) -> None:
        """`name` is the conversation to begin or continue; None for the one used last."""
        super().__init__()
        self.session = session
        self._name = name
        self._private = private
        self._is_leaving = False

    def get_default_screen(self) -> ChatScreen:
        """The chat."""
        return ChatScreen(self.session)

    @property
    def chat_screen(self) -> ChatScreen:
        """The main screen, whatever lies above it."""
        screen = self.screen_stack[0]
        assert isinstance(screen, ChatScreen), "the chat is the lowest screen"
        return screen

    def on_mount(self) -> None:
        """Open the session behind the screen that is shown already."""
        self._on_signals()
        self.run_worker(self._open(), exclusive=True, group="open")

    async def _open(self) -> None:
        screen = self.chat_screen
        try:
            await self.session.open(self._ask_passphrase)
            chat = self.session.draft(private=self._private)
            infos = await self.session.infos()
            name = self._name or (infos[0].name if infos else None)
            if name is not None and not self._private:
                chat = await self.session.enter(name)
            await screen.show(chat)
            await screen.refresh_list()
        except EdgeKVError as error:
            screen.say(str(error), is_alert=True)

    def _ask_passphrase(self, question: str) -> str:
        """Called in the thread that opens the session."""
        answer: str | None = self.call_from_thread(self._ask, question)
        return answer or ""

    async def _ask(self, question: str) -> str | None:
        answered: asyncio.Future[str | None] = asyncio.get_running_loop().create_future()
        self.push_screen(Ask(question, is_secret=True), callback=answered.set_result)
        return await answered

    async def action_quit(self) -> None:
        """Stop what runs, keep it, leave."""
        self.leave(0)

    def leave(self, code: int) -> None:
        """Close the session and end with `code`; asked a second time, do not wait for it."""
        if self._is_leaving:
            self.exit(code)
            return
        self._is_leaving = True
        self.chat_screen.say("closing: what was answered is being written…")
        self.run_worker(self._leave(code), group="leave")

    async def _leave(self, code: int) -> None:
        try:
            await self.session.close()
        finally:
            self.exit(code)

    def _on_signals(self) -> None:
        """SIGTERM and a closed window are a quit: the terminal is put back, what was answered is kept."""
        if threading.current_thread() is not threading.main_thread():
            return
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGHUP):
            loop.add_signal_handler(number, self.leave, 128 + number)
