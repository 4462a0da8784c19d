"""The main screen: one conversation, the list of all, and the prompt.

Knows which conversation is shown and hands what a person does to it. Does not know how answers come to be,
and nothing of files.
"""

from __future__ import annotations

import asyncio
from functools import partial
from typing import TYPE_CHECKING, ClassVar

from textual import on
from textual.containers import Horizontal, Vertical
from textual.css.query import NoMatches
from textual.screen import Screen
from textual.widget import MountError
from textual.widgets import Static

from edgekv import Closed, EdgeKVError
from edgekv_tui.deeds import Deeds
from edgekv_tui.keys import key
from edgekv_tui.lines import pending_line, restored_line
from edgekv_tui.openchat import Unsent, place_of
from edgekv_tui.quiet import Quiet
from edgekv_tui.search.keeper import SearchKeeper
from edgekv_tui.text import one_line
from edgekv_tui.widgets.chats import ChatList
from edgekv_tui.widgets.keyline import KeyLine
from edgekv_tui.widgets.memory import MemoryPanel
from edgekv_tui.widgets.prompt import Prompt
from edgekv_tui.widgets.status import Status
from edgekv_tui.widgets.transcript import Transcript
from edgekv_tui.widgets.turn import TurnView

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from textual.app import ComposeResult
    from textual.binding import BindingType
    from textual.widgets import Markdown
    from textual.worker import Worker

    from edgekv import Turn
    from edgekv_tui.answering import Answering
    from edgekv_tui.openchat import OpenChat
    from edgekv_tui.session import Session
    from edgekv_tui.written import Written

EMPTY = "Nothing was said yet. Enter sends, Ctrl+J begins a new line, F1 lists all keys."
EMPTY_PRIVATE = "A private chat: nothing of it is written to disk, and it ends with this program."


class ChatScreen(Screen[None]):
    """One conversation at a time; answers of others go on behind it."""

    AUTO_FOCUS = "#prompt"
    HORIZONTAL_BREAKPOINTS = [(0, "-narrow"), (100, "-wide"), (150, "-vast")]  # noqa: RUF012  Textual's form
    BINDINGS: ClassVar[list[BindingType]] = [
        key(
            "chat.stop",
            "escape",
            "stop",
            "",
            "Stop the answer; leave an edit, the list or the map",
            first=True,
        ),
        key("chat.new", "ctrl+n", "new", "New", "Begin a new conversation"),
        key(
            "chat.private",
            "ctrl+t",
            "new(True)",
            "Private",
            "Begin a private one; nothing is kept",
            first=True,
        ),
        key("chat.again", "ctrl+r", "regenerate", "Again", "Answer the last message again, on a branch"),
        key("chat.list", "ctrl+l", "chats", "Chats", "Go to the list of conversations, and back", first=True),
        key(
            "chat.find", "ctrl+f", "deed('find')", "Find", "Find words in all kept conversations", first=True
        ),
        key("chat.editor", "ctrl+g", "deed('editor')", "", "Write the message in $VISUAL or $EDITOR"),
        key("chat.edit", "f2", "deed('edit_last')", "", "Edit the last message: asks anew on a branch"),
        key("chat.details", "f3", "deed('details')", "", "All that is known of the last answer"),
        key("chat.memory", "f4", "memory", "", "Show the map of the memory, or hide it"),
        key("chat.page_up", "pageup", "page(-1)", "", "Scroll up; at the top earlier turns come", first=True),
        key("chat.page_down", "pagedown", "page(1)", "", "Scroll down", first=True),
        key(
            "chat.turns", "shift+tab", "turns", "", "Go to the last turn; arrows go on from there", first=True
        ),
    ]

    def __init__(
        self, session: Session, changed_keys: Mapping[str, str], when_quiet: Callable[[], None]
    ) -> None:
        super().__init__()
        self._changed_keys = changed_keys
        self._quiet = Quiet(self, when_quiet, lambda: self.chat.is_answering)
        self.session = session
        self.search = SearchKeeper(session)
        self._deeds = Deeds(self)
        self._view: TurnView | None = None
        self._editing: Turn | None = None
        self._mounting = asyncio.Lock()
        self.chat = session.draft()
        self.was_chosen = False

    def compose(self) -> ComposeResult:
        """The list, and the conversation above the prompt."""
        yield Static(id="title", markup=False)
        with Horizontal():
            yield ChatList(id="chats")
            with Vertical(id="main"):
                yield Transcript(id="transcript")
                yield Status("loading the model…", id="status")
                yield Prompt(self._submit, self._changed_keys, id="prompt")
            yield MemoryPanel(self.session, id="memory")
        yield KeyLine()

    def on_mount(self) -> None:
        """There before the model is; one can write already."""
        self.session.on_change = self._list_again
        self._show_title()

    def on_unmount(self) -> None:
        """Answers that go on are kept, and nobody is shown them."""
        self._stop_showing()

    async def show(self, chat: OpenChat, *, keeps_prompt: bool = False) -> None:
        """Put `chat` on the screen, an answer that is being made included.

        What was begun to be written stays with its conversation: no private word is sent in another. Other words
        go along if `keeps_prompt`: written before there was one, or while the model was loaded again.
        """
        self._stop_showing()
        self.was_chosen = True
        turns = chat.history()
        prompt = self.query_one(Prompt)
        now = Unsent(prompt.written, self._editing)
        unsent = chat.taken_up(turns, now, self.chat, keeps_prompt=keeps_prompt)
        if unsent is not now:
            prompt.put(unsent.written)
        self._editing = unsent.turn if unsent.is_of(turns) else None
        self.chat = chat
        self._rest()  # before it is drawn: what is said meanwhile stays
        answering = chat.answering if chat.is_answering else None
        shown = turns if answering is None else turns[: answering.turn]
        async with self._mounting:
            if chat is not self.chat:
                return  # another conversation was chosen meanwhile
            empty = EMPTY_PRIVATE if chat.private else EMPTY
            await self.query_one(Transcript).show(shown, chat.branch_marks(), empty=empty)
        if chat is not self.chat or not (self.query(MemoryPanel) and self.query("#title")):
            return  # or another one was chosen while it was drawn, or the program is being left
        self.call_after_refresh(self._quiet.now)  # the old one is garbage now
        prompt.remember([turn.user for turn in turns])
        self.query_one(MemoryPanel).show(chat)
        self._show_title()
        if answering is not None:
            await self._begin_showing(chat, answering)
        elif self._editing is not None:
            self._say_editing(place_of(self._editing, turns))
        elif chat.refusal is not None:
            self.say(chat.refusal, is_alert=True)
        elif turns and turns[-1].state == "pending":
            self.say(pending_line(turns[-1]).replace("/regen", "Ctrl+R"), is_alert=True)

    def _list_again(self) -> None:
        for prompt in self.query(Prompt) if self.chat.unsent.written.text else ():
            prompt.give_back(self.chat.take_unsent().written)  # what another draft left in this one
        if self.is_attached:
            listing = partial(self.refresh_list, again=False)
            _: Worker[None] = self.run_worker(listing, group="list", exclusive=True)

    async def refresh_list(self, *, again: bool = True) -> None:
        """Show the list of conversations, read `again` or as it is known."""
        if not self.session.can_read:
            return
        try:
            infos = await self.session.infos(again=again)
        except Closed:
            return  # the program is being left
        except EdgeKVError as error:
            self.say(str(error), is_alert=True)
            return
        self.query_one(ChatList).show(infos, self.session.in_memory(), (self.chat.name, self.chat.private))

    def _submit(self, written: Written) -> None:
        if not self.session.is_open:
            self.notify(f"{self.session.why_closed} (nothing was sent)", severity="warning")
            self.query_one(Prompt).give_back(written)
            return
        unsent, self._editing = Unsent(written, self._editing), None
        _: Worker[None] = self.run_worker(partial(self._send, self.chat, unsent), group="send")

    async def _send(self, chat: OpenChat, unsent: Unsent) -> None:
        if await self._begin(chat, lambda: chat.send(unsent)):
            return
        if (chat.name, chat.private) == (self.chat.name, self.chat.private):  # opened anew meanwhile or not
            self._editing = unsent.here(chat.history()).turn
            self.query_one(Prompt).give_back(unsent.written)
        else:
            chat.unsent = unsent.before(chat.unsent)

    async def _begin(self, chat: OpenChat, begin: Callable[[], Answering]) -> bool:
        """Whether it was begun, in `chat`: another one may be chosen while the answer before it is stopped."""
        while chat.is_answering:
            answering = chat.answering
            if answering is None or not answering.is_stopping:
                self.notify("An answer is being made; Esc stops it.", severity="warning")
                return False
            await chat.wait()
        try:
            answering = begin()
        except EdgeKVError as error:
            self.say(str(error), is_alert=True)
            return False
        if chat is self.chat:
            self._stop_showing()
            await self._begin_showing(chat, answering)
        return True

    async def _begin_showing(self, chat: OpenChat, answering: Answering) -> None:
        """Show `answering` as it grows, from now on."""
        async with self._mounting:
            if chat is not self.chat:
                return  # another conversation was chosen meanwhile
            before = chat.history()[: answering.turn]
            self._view = await self.query_one(Transcript).begin(before, answering.user)
            answering.on_change = lambda: self._update(answering)
        await self._update(answering)

    def _stop_showing(self) -> None:
        if self.chat.answering is not None:
            self.chat.answering.on_change = None
        self._view = None

    async def _update(self, answering: Answering) -> None:
        view = self._view
        if view is None:
            return
        try:
            if not answering.has_ended:  # its end waits for nothing: the next message may follow at once
                await self.query_one(Prompt).until_drawn()
            if view is self._view and view.is_attached:
                await self._draw(answering, view)
        except (MountError, NoMatches):
            if view.is_there:
                raise  # else another conversation was chosen meanwhile: the answer goes on without a view

    async def _draw(self, answering: Answering, view: TurnView) -> None:
        status = self.query_one(Status)
        if answering.progress is not None and self.chat.reopened_tokens:
            waited = asyncio.get_running_loop().time() - answering.began
            view.remark(restored_line(answering.progress, self.chat.reopened_tokens, waited))
            self.chat.reopened_tokens = 0
        if not answering.has_ended:
            await view.grow(answering.text)
            status.follow(answering)
            return
        self._stop_showing()
        self._quiet.ask()
        await self._end(answering, view)

    async def _end(self, answering: Answering, view: TurnView) -> None:
        if answering.result is not None:
            history = self.chat.history()
            await view.end(
                answering.result, self.chat.branch_marks().get(history[-1].id, "") if history else ""
            )
        if not view.is_there:
            return  # another conversation was chosen meanwhile, or the program was left
        self._rest()
        for notice in answering.notices:
            view.remark(notice)
        if answering.error is not None:
            if self.chat.was_refused:  # it was not kept: it is no turn, and goes back to the prompt
                await self.show(self.chat)
            else:
                view.remark("[no answer]")
            self.say(str(answering.error), is_alert=True)
        self.query_one(Prompt).remember([turn.user for turn in self.chat.history()])
        self._show_title()

    def say(self, text: str, *, is_alert: bool = False) -> None:
        """Show one line above the prompt until something else is to be said."""
        for status in self.query(Status):  # none while the program is being left
            status.say(text, is_alert=is_alert)

    def _rest(self) -> None:
        """What the status line says while nothing happens."""
        degraded = self.session.degraded
        if degraded is not None and not self.chat.private:
            self.say(f"nothing is kept on disk: {degraded}", is_alert=True)
        else:
            self.say("")

    def _show_title(self) -> None:
        private, model = " · PRIVATE" if self.chat.private else "", one_line(self.session.model_name, 40)
        self.set_class(self.chat.private, "-private")
        title = f" {one_line(self.chat.name, 60)}{private} · {model}"
        self.query_one("#title", Static).update(title)

    async def action_stop(self) -> None:
        """Esc: stop the answer; else leave what was begun, back to the prompt."""
        prompt = self.query_one(Prompt)
        if self.chat.is_answering and self.chat.answering is not None:
            self.chat.answering.stop()
            self.query_one(Status).follow(self.chat.answering)
        elif self._editing is not None:
            self._editing = None
            prompt.empty()
            self._rest()
        self.remove_class("-list", "-memory")
        self.set_focus(prompt)

    def edit_turn(self, number: int) -> None:
        """Put the message of turn `number` into the prompt; sending it makes a branch."""
        self._editing = self.chat.history()[number]
        prompt = self.query_one(Prompt)
        prompt.replace_all(self._editing.user)
        self.set_focus(prompt)
        self._say_editing(number)

    def _say_editing(self, number: int) -> None:
        self.say(
            f"editing message {number + 1}: Enter asks anew on a branch of its own, Esc leaves it as it is"
        )

    def action_deed(self, name: str) -> None:
        """Do what the palette lists."""
        _: Worker[None] = self.run_worker(partial(self._deeds.do, name), group="deed", exclusive=True)

    async def action_new(self, private: bool = False) -> None:
        """A new conversation."""
        await self.show(self.session.draft(private=private))
        self.set_focus(self.query_one(Prompt))

    async def action_regenerate(self) -> None:
        """Answer the last message again, on a branch of its own."""
        await self._begin(self.chat, self.chat.regenerate)

    def action_chats(self) -> None:
        """Go to the list, or hide it again. `Widget.focus` would leave the next key to the prompt."""
        chats = self.query_one(ChatList)
        if self.focused is chats:
            self.remove_class("-list")
            self.set_focus(self.query_one(Prompt))
        else:
            self.add_class("-list")
            self.set_focus(chats)

    def action_memory(self) -> None:
        """Show where the memory goes, or hide it."""
        self.toggle_class("-memory")
        self.call_after_refresh(self.query_one(MemoryPanel).look)

    def action_turns(self) -> None:
        """Go to the last turn."""
        views = self.query_one(Transcript).views
        if views:
            self.set_focus(views[-1])

    @on(TurnView.Asked)
    def _do_with_turn(self, message: TurnView.Asked) -> None:
        self._deeds.do_with_turn(message.what, message.view.number)

    def on_markdown_link_clicked(self, message: Markdown.LinkClicked) -> None:
        """Nothing leaves this machine by itself: a link is copied, and opened elsewhere if it is wanted."""
        self._deeds.copy_text(message.href)
        self.say(f"copied: {message.href}")

    @on(Prompt.Changed)
    def _not_quiet(self) -> None:
        self._quiet.disturb()

    @on(Transcript.Ended)
    def _back_to_prompt(self) -> None:
        self.set_focus(self.query_one(Prompt))

    def action_page(self, step: int) -> None:
        """Scroll the conversation, wherever the focus is."""
        transcript = self.query_one(Transcript)
        transcript.scroll_relative(y=step * (transcript.size.height - 2), animate=False)

    @on(ChatList.Picked)
    async def _pick(self, message: ChatList.Picked) -> None:
        await self.pick(message.name, private=message.private)

    async def pick(self, name: str, *, private: bool = False) -> None:
        """Go to a conversation of the list."""
        try:
            chat = await self.session.enter(name, private=private)
        except EdgeKVError as error:
            self.say(str(error), is_alert=True)
            return
        self.remove_class("-list")
        await self.show(chat)
        self.set_focus(self.query_one(Prompt))
        await self.refresh_list()
