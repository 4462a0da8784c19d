"""The full-screen chat: opens the session behind the first screen, and says what went wrong if it does not open.

Knows screens and the session. The terminal is Textual's; everything about conversations is the session's.
"""

from __future__ import annotations

import asyncio
import signal
import threading
from functools import partial
from typing import TYPE_CHECKING, ClassVar

from textual.app import App, SystemCommand
from textual.binding import Binding
from textual.worker import Worker, WorkerFailed

from edgekv import EdgeKVError, ModelLoadError, found_models
from edgekv_tui.keys import bindings_of, key, key_rows
from edgekv_tui.palette import DeedProvider
from edgekv_tui.screens.chat import ChatScreen
from edgekv_tui.screens.dialogs import Ask, Choose, Confirm
from edgekv_tui.screens.find import Find
from edgekv_tui.screens.pages import Page
from edgekv_tui.settings import Settings, check, save_theme
from edgekv_tui.text import size
from edgekv_tui.widgets.prompt import Prompt
from edgekv_tui.widgets.turn import TurnView, answer_class

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterable
    from pathlib import Path

    from textual.binding import BindingType
    from textual.dom import DOMNode
    from textual.screen import Screen
    from textual.theme import Theme

    from edgekv_tui.session import Session


class ChatApp(App[int]):
    """One window over one session; its result is the program's exit code."""

    CSS_PATH = "edgekv.tcss"
    TITLE = "edgekv"
    COMMANDS = App.COMMANDS | {DeedProvider}
    BINDINGS: ClassVar[list[BindingType]] = [
        key("app.help", "f1", "keys", "Help", "This page"),
        Binding(
            "ctrl+p",
            "command_palette",
            "palette",  # at the right of the bottom line, where Textual puts it
            show=False,
            priority=True,
            id="app.palette",
            tooltip="All that can be done, and all chats, by their words",
        ),
        key("app.quit", "ctrl+q", "quit", "", "Leave; what was answered is kept", first=True),
    ]

    def __init__(
        self,
        session: Session,
        name: str | None = None,
        *,
        private: bool = False,
        settings: Settings | None = None,
        settings_file: Path | None = None,
    ) -> None:
        """`name` is the conversation to begin or continue; None for the one used last.

        A theme chosen in the palette is written to `settings_file`. Raises ConfigError for settings that name
        a theme or a key that does not exist.
        """
        super().__init__()
        self._settings = settings or Settings()
        self._settings_file = settings_file
        owners: list[type[DOMNode]] = [*KEY_GROUPS.values(), Ask, Confirm, Choose, Find, Page]
        check(self._settings, self.available_themes, [binding.id or "" for binding in bindings_of(*owners)])
        self.set_keymap(self._settings.keys)
        self._kept_theme = self._settings.theme
        if self._settings.theme is not None:
            self.theme = self._settings.theme
        self.session = session
        self._name = name
        self._private = private
        self._is_leaving = False
        self.on_left: Callable[[int], None] = _nothing_more
        self.on_drawn: Callable[[], None] = _nothing_to_do
        self.on_quiet: Callable[[], None] = _nothing_to_do

    def get_default_screen(self) -> ChatScreen:
        """The chat."""
        return ChatScreen(self.session, self._settings.keys, self.on_quiet)

    @property
    def chat_screen(self) -> ChatScreen:
        """The main screen, whatever lies above it."""
        screen = self.screen_stack[0]
        assert isinstance(screen, ChatScreen), "the chat is the lowest screen"
        return screen

    def on_mount(self) -> None:
        """Open the session behind the screen that is shown already."""
        self._on_signals()
        self.session.spawn = partial(self.run_worker, group="answers")
        self.theme_changed_signal.subscribe(self, self._keep_theme)
        self.call_after_refresh(self._begin)

    def _begin(self) -> None:
        """Once the first screen is drawn: loading a model takes the processors, and the interpreter's lock."""
        self.on_drawn()
        _: Worker[None] = self.run_worker(self._open, group="open")

    async def _open(self) -> None:
        screen, problem = self.chat_screen, None
        try:
            await asyncio.to_thread(answer_class)
            if not await self.session.open(self._ask_passphrase):
                return  # whoever closed it, or opens it anew, says more
        except EdgeKVError as error:
            problem = error
        try:
            if self.session.can_read:
                await self._show_what_is_kept()
        except EdgeKVError as error:  # of one conversation: there is the list, and others can be read
            problem = problem or error
        await screen.refresh_list()
        if problem is not None:
            screen.say(str(problem), is_alert=True)
        if isinstance(problem, ModelLoadError):
            await self._choose_model(str(problem))

    async def _show_what_is_kept(self) -> None:
        """What was on the screen before; to begin with what was asked for, or the one used last."""
        session, screen = self.session, self.chat_screen
        names = [info.name for info in await session.infos()]
        name, private = self._name or next(iter(names), None), self._private
        if screen.was_chosen:
            chat = screen.chat
            name, private = None if chat.conversation is None else chat.name, chat.private
        is_new = name is not None and name not in names and not screen.was_chosen
        if private or name is None or (name not in names and not is_new):
            await screen.show(session.draft(private=private), keeps_prompt=True)
        elif session.is_open or not is_new:
            await screen.show(await session.enter(name), keeps_prompt=True)

    async def action_use_another_model(self) -> None:
        """Offer the models there are; what was said stays with the model it was said to."""
        await self._choose_model(
            f"Now: {self.session.model_name}. Private chats end with a change of the model."
        )

    def action_load_again(self) -> None:
        """Close the session and open it anew: after the engine failed, or with another model.

        Not within the deed that asked for it: the next deed would end that, and no model would be loaded.
        """
        _: Worker[None] = self.run_worker(self._load_again, group="open")

    async def _load_again(self) -> None:
        self.chat_screen.say("closing…")
        lost = None
        try:
            await self.session.close()
        except EdgeKVError as error:
            lost = str(error)
        self.chat_screen.say("loading the model…")
        await self._open()
        if lost is not None:
            self.chat_screen.say(lost, is_alert=True)

    async def _choose_model(self, problem: str) -> None:
        """Offer what there is; one key begins with it."""
        found = await asyncio.to_thread(found_models, self.session.config)
        models = self.session.config.data_dir / "models"
        hint = (
            "Enter: begin with it · Esc: back · or: edgekv chat --model PATH\n"
            f"or put a GGUF file into {models}\n"
            "and choose it here: Esc, Ctrl+P, Use another model"
        )
        rows = [f"{size(model.size):>9}  {model.name}  [{model.source}]" for model in found]
        chosen = await self.push_screen_wait(Choose(problem, rows or ["no GGUF file was found"], hint=hint))
        if chosen is not None and found:
            self.session.config = self.session.config.replace({"model": found[chosen].path})
            self.action_load_again()

    def _ask_passphrase(self, question: str) -> str:
        """Called in the thread that opens the session."""
        ask: Callable[[str], str | Awaitable[str]] = self._ask
        return self.call_from_thread(ask, question)

    async def _ask(self, question: str) -> str:
        answered: asyncio.Future[str | None] = asyncio.get_running_loop().create_future()
        self.push_screen(Ask(question, is_secret=True), callback=answered.set_result)
        return await answered or ""

    def get_system_commands(self, screen: Screen[object]) -> Iterable[SystemCommand]:
        """Textual's own for the palette, but for pictures of the screen: those would lie on a disk."""
        wanted = {"Theme", "Quit", "Maximize", "Minimize"}
        return [command for command in super().get_system_commands(screen) if command.title in wanted]

    def action_keys(self) -> None:
        """All keys, as they are set."""
        where = self._settings_file or "chat.toml"
        rows = [*key_rows(KEY_GROUPS, self._settings.keys), (f"Keys and theme are set in {where}", "")]
        self.push_screen(Page("Keys", rows))

    def action_help_quit(self) -> None:
        """Ctrl+C where nothing is selected."""
        self.chat_screen.say("Ctrl+Q leaves; Esc stops an answer")

    def _fatal_error(self) -> None:
        """An error of our own ends the program; the command line logs where, without what was being said."""
        self._close_messages_no_wait()

    @property
    def fatal_error(self) -> Exception | None:
        """What ended the program, if it was an error."""
        error = self._exception
        return (
            error.error if isinstance(error, WorkerFailed) and isinstance(error.error, Exception) else error
        )

    def _keep_theme(self, theme: Theme) -> None:
        """Remember what was chosen in the palette."""
        if self._settings_file is not None and theme.name != self._kept_theme:
            try:
                save_theme(self._settings_file, theme.name)
                self._kept_theme = theme.name
            except OSError as error:
                self.chat_screen.say(f"the theme is not remembered: {error.strerror or error}", is_alert=True)

    async def action_quit(self) -> None:
        """Stop what runs, keep it, leave; asked a second time, do not wait for it."""
        if self._is_leaving:
            self._end(0, message="not waiting: KV that is not written now will be computed again")
        else:
            self.leave(0)

    def leave(self, code: int) -> None:
        """Close the session and end with `code`. A second signal changes nothing: windows send several."""
        if self._is_leaving:
            return
        self._is_leaving = True
        self.chat_screen.say("closing: what was answered is being written… (Ctrl+Q again: do not wait)")
        _: Worker[None] = self.run_worker(partial(self._leave, code), group="leave")

    async def _leave(self, code: int) -> None:
        closing = asyncio.ensure_future(self.session.close())
        await asyncio.wait([closing])  # cancelled, this ends here and the closing goes on
        self._end(code)
        closing.result()

    def _end(self, code: int, message: str | None = None) -> None:
        self.exit(code, message=message)
        self.on_left(code)

    def _on_signals(self) -> None:
        """SIGTERM and a closed window are a quit: the terminal is put back, what was answered is kept."""
        if threading.current_thread() is not threading.main_thread():
            return
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGHUP):
            loop.add_signal_handler(number, self.leave, 128 + number)


def _nothing_to_do() -> None:
    """Whoever started the app has nothing to do once it is seen, nor in quiet moments."""


def _nothing_more(_code: int) -> None:
    """Whoever started the app sees to its end."""


KEY_GROUPS: dict[str, type[DOMNode]] = {
    "Anywhere": ChatApp,
    "In the chat": ChatScreen,
    "While writing": Prompt,
    "On a turn (Shift+Tab goes there)": TurnView,
}
