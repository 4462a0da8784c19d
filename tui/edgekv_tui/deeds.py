"""What a person can do with a conversation besides talking. Each deed asks for what it needs.

Knows dialogs, files and the session; the screen is told what to show. Deeds run in a worker, one at a time.
"""

from __future__ import annotations

import asyncio
import os
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from textual.app import SuspendNotSupported

from edgekv import ConversationError, EdgeKVError, TemplateError, read_foreign
from edgekv.conversation.linefile import read_lines, write_lines
from edgekv_tui.details import detail_rows, given_up_rows, making_rows
from edgekv_tui.editor import edit
from edgekv_tui.screens.dialogs import Ask, Choose, Confirm
from edgekv_tui.screens.find import Find
from edgekv_tui.screens.pages import Page
from edgekv_tui.text import one_line
from edgekv_tui.widgets.prompt import Prompt
from edgekv_tui.widgets.transcript import Transcript

if TYPE_CHECKING:
    from edgekv_tui.openchat import OpenChat
    from edgekv_tui.screens.chat import ChatScreen
    from edgekv_tui.screens.pages import Row


@dataclass(frozen=True, slots=True)
class Deed:
    """A row of the palette: `name` is the method below."""

    name: str
    title: str
    help: str


DEEDS = (
    Deed("find", "Find in all chats", "Words in messages and answers of every kept conversation"),
    Deed("edit_last", "Edit the last message", "Ask differently: a new branch, the old one stays"),
    Deed("branches", "Branches", "Go to another branch of this conversation"),
    Deed("details", "Details of the last answer", "Exactness, tokens, speed, memory"),
    Deed("copy", "Copy the last answer", "To the terminal's clipboard"),
    Deed("editor", "Write in an editor", "Opens the message in $VISUAL or $EDITOR"),
    Deed("rename", "Rename this conversation", "Nothing else changes"),
    Deed("export_markdown", "Export as Markdown", "The current branch, for reading; not encrypted"),
    Deed("export_json", "Export as JSON lines", "Everything, to be imported again; not encrypted"),
    Deed("import_file", "Import conversations", "What edgekv exported, ChatGPT's export, or llm's logs.db"),
    Deed("given_up", "What was demoted or given up", "Of which conversation, how much, when and why"),
    Deed("unload", "Free the memory", "The model and its KV; the next message loads them again"),
    Deed("model", "Use another model", "Conversations stay with the model that made them"),
    Deed("load_again", "Load the model again", "After an error, or when the disk is there again"),
    Deed("forget", "Forget this conversation", "Destroys its key: text and memory are gone for good"),
)


class Deeds:
    """The deeds over one screen."""

    def __init__(self, screen: ChatScreen) -> None:
        self._screen = screen

    async def do(self, name: str) -> None:
        """Do one; what goes wrong is said in one line."""
        assert any(deed.name == name for deed in DEEDS), name
        try:
            await getattr(self, name)()
        except EdgeKVError as error:
            self._screen.say(str(error), is_alert=True)

    def do_with_turn(self, what: str, number: int) -> None:
        """What was asked for on turn `number`."""
        match what:
            case "edit":
                self._screen.edit_turn(number)
            case "details":
                self.show_details(number)
            case "copy":
                self.copy_text(self._screen.chat.history()[number].answer)
            case "branches":
                self._screen.action_deed("branches")

    async def find(self) -> None:
        """Find words in all kept conversations and go there."""
        hit = await self._screen.app.push_screen_wait(Find(self._screen.search))
        if hit is not None:
            chat = await self._screen.session.enter(hit.name)
            await chat.switch(hit.turn_id)
            await self._screen.show(chat)
            ids = [turn.id for turn in chat.history()]
            if hit.turn_id in ids:
                await self._screen.query_one(Transcript).reveal(ids.index(hit.turn_id))
            await self._screen.refresh_list()

    async def edit_last(self) -> None:
        """Put the last message into the prompt."""
        turns = self._screen.chat.history()
        if not turns:
            raise ConversationError("there is no message yet that could be edited")
        self._screen.edit_turn(len(turns) - 1)

    async def branches(self) -> None:
        """Choose one and show it."""
        conversation = self._screen.chat.conversation
        found = [] if conversation is None else conversation.branches()
        if conversation is None or len(found) < 2:
            raise ConversationError("there is one branch only; editing or regenerating makes another")
        rows = [
            f"{'●' if b.is_current else ' '} {b.num_turns} turns · {one_line(b.last_user_text, 56)}"
            for b in found
        ]
        at = await self._screen.app.push_screen_wait(Choose("Branches", rows))
        if at is not None:
            await asyncio.to_thread(conversation.switch, found[at])
            await self._screen.show(self._screen.chat)

    async def details(self) -> None:
        """Of the last answer, or of the one that is being made."""
        chat = self._screen.chat
        making = chat.answering if chat.is_answering else None
        self.show_details(len(chat.history()) - 1 if making is None else making.turn)

    def show_details(self, number: int) -> None:
        """Of the answer of turn `number`; while it is made they grow."""
        chat = self._screen.chat
        making = chat.answering if chat.is_answering else None
        is_made = making is not None and making.turn == number
        user, rows = self._details(chat, number)
        again = (lambda: self._details(chat, number)[1]) if is_made else None
        self._screen.app.push_screen(Page(f"Answer {number + 1}: {one_line(user, 50)}", rows, again=again))

    def _details(self, chat: OpenChat, number: int) -> tuple[str, list[Row]]:
        """The message of turn `number`, and what is known of its answer now."""
        turns = chat.history()
        making = chat.answering if chat.is_answering else None
        if making is not None and making.turn == number:
            return making.user, list(making_rows(making))
        if 0 <= number < len(turns):
            turn = turns[number]
            return turn.user, list(detail_rows(turns[: number + 1], chat.results.get(turn.id)))
        raise ConversationError("there is no answer yet")

    async def copy(self) -> None:
        """The last answer."""
        turns = self._screen.chat.history()
        if not turns:
            raise ConversationError("there is no answer yet")
        self.copy_text(turns[-1].answer)

    def copy_text(self, text: str) -> None:
        """To the clipboard, by the terminal (OSC 52): works over ssh."""
        self._screen.app.copy_to_clipboard(text)
        self._screen.say(f"copied {len(text):,} characters, if this terminal allows it")

    async def editor(self) -> None:
        """Write the message in an editor, but for private ones: an editor may keep copies on disk."""
        if self._screen.chat.private:
            raise ConversationError("this chat is private, and editors keep copies on disk: write it here")
        prompt = self._screen.query_one(Prompt)
        app = self._screen.app
        try:
            with app.suspend():
                text = edit(prompt.whole_text)
        except SuspendNotSupported as error:
            raise ConversationError("this terminal cannot be handed to an editor") from error
        prompt.replace_all(text)
        self._screen.set_focus(prompt)

    async def rename(self) -> None:
        """Ask for the new name."""
        chat = self._screen.chat
        name = await self._screen.app.push_screen_wait(Ask("Rename this conversation", chat.name))
        if name is not None and name.strip() != chat.name:
            await self._screen.session.rename(chat, name.strip())
            await self._screen.show(chat)
            await self._screen.refresh_list()

    async def export_markdown(self) -> None:
        """Ask where to, and write the current branch."""
        conversation = self._screen.chat.conversation
        if conversation is None:
            raise ConversationError("nothing was said yet that could be exported")
        await self._export("Markdown", ".md", conversation.markdown().splitlines())

    async def export_json(self) -> None:
        """Ask where to, and write all branches."""
        chat = self._screen.chat
        if chat.conversation is None or chat.private:
            raise ConversationError("only a kept conversation is exported as JSON lines; Markdown works")
        lines = await asyncio.to_thread(self._screen.session.shelf.export_conversation, chat.name)
        await self._export("JSON lines", ".jsonl", lines)

    async def _export(self, kind: str, suffix: str, lines: list[str]) -> None:
        name = "".join(c if c.isalnum() or c in " -_." else "_" for c in self._screen.chat.name).strip(" .")
        question = f"Export as {kind} to a new file. It is not encrypted."
        path = await self._screen.app.push_screen_wait(Ask(question, str(Path.cwd() / (name + suffix))))
        if path:
            await write_lines(os.path.expanduser(path), lines)  # noqa: PTH111,ASYNC240  only text
            self._screen.say(f"exported to {path}")

    async def import_file(self) -> None:
        """Ask which file, keep what is in it, and show it."""
        path = await self._screen.app.push_screen_wait(Ask("Import which file?", str(Path.cwd()) + "/"))
        if path:
            path = os.path.expanduser(path)  # noqa: PTH111,ASYNC240  only text
            is_own = await asyncio.to_thread(_starts_with, path, b'{"edgekv_conversation"')
            refused: list[Row] = []
            name = await (self._import_own(path) if is_own else self._import_foreign(path, refused))
            if name is not None:
                await self._screen.show(await self._screen.session.enter(name))
                await self._screen.refresh_list()
            if refused:
                self._screen.app.push_screen(Page("What was not imported", refused))

    async def _import_own(self, path: str) -> str:
        lines = await read_lines(path)
        return await asyncio.to_thread(self._screen.session.shelf.import_conversation, lines)

    async def _import_foreign(self, path: str, refused: list[Row]) -> str | None:
        """All that can be, one by one: the name of the last. What cannot, or in part only: `refused`."""
        chats = await asyncio.to_thread(read_foreign, Path(path))
        name = None
        for at, chat in enumerate(chats, 1):
            self._screen.say(f"importing {at} of {len(chats)}: {one_line(chat.title, 40)}")
            try:
                name = await asyncio.to_thread(self._screen.session.runtime.import_foreign, chat)
            except (ConversationError, TemplateError) as error:  # of this one; another error would be of all
                refused.append((one_line(chat.title, 30), str(error)))
            else:
                if chat.notice is not None:
                    refused.append((one_line(chat.title, 30), chat.notice))
        return name

    async def given_up(self) -> None:
        """All that is known of KV that had to give way: in this run, and on disk since a conversation was used."""
        session = self._screen.session
        infos = await session.infos()

        def rows() -> list[Row]:
            return list(given_up_rows(session.moves(), infos))

        self._screen.app.push_screen(Page("What was demoted or given up", rows(), again=rows))

    async def unload(self) -> None:
        """Free the weights and what is warm."""
        self._screen.say("writing what is to be kept…")
        await asyncio.to_thread(self._screen.session.runtime.unload)
        self._screen.say("the memory is free; the next message loads the model again")

    async def model(self) -> None:
        """Choose one."""
        await self._screen.app.run_action("use_another_model")

    async def load_again(self) -> None:
        """Close everything and open it anew."""
        await self._screen.app.run_action("load_again")

    async def forget(self) -> None:
        """Ask, then destroy it and begin a new one."""
        chat = self._screen.chat
        if chat.conversation is None:
            raise ConversationError("nothing was said yet that could be forgotten")
        question = f"Forget {chat.name!r}? Its key is destroyed: nothing of it can be read again."
        if chat.is_in_memory and not chat.private:
            question = f"Forget {chat.name!r} of this run? What was kept of it earlier stays on disk."
        if await self._screen.app.push_screen_wait(Confirm(question)):
            await self._screen.session.forget(chat)
            await self._screen.show(self._screen.session.draft(private=chat.private))
            await self._screen.refresh_list()
            self._screen.say(f"forgotten: {chat.name}")


def _starts_with(path: str, start: bytes) -> bool:
    try:
        with Path(path).open("rb") as file:
            return file.read(len(start)) == start
    except OSError as error:
        raise ConversationError(f"cannot read {path}: {error.strerror or error}") from error
