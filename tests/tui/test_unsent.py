"""What was written and not sent yet is there again, whatever becomes of the model meanwhile."""

import asyncio
import threading

import pytest
from fakes import FakeFactory
from patience import PATIENCE_S

from edgekv import EdgeKVError, Runtime
from edgekv_tui.widgets.transcript import Transcript


def prompt_of(person):
    return person.app.chat_screen.query_one("#prompt")


async def loads_again(person):
    session, opens = person.app.session, person.app.session.num_opens
    await person.does("load_again")
    await person.until(lambda: session.num_opens > opens, "the model")
    await person.misses("loading", "closing")


async def begins_new(person):
    await person.presses("ctrl+n")
    await person.until(lambda: person.app.chat_screen.chat.conversation is None)
    await person.sees("Nothing was said yet")


def refusing(may_refuse):
    """What refuses a message, as soon as it may."""

    def refuse(_text, **_options):
        may_refuse.wait(PATIENCE_S)
        raise EdgeKVError("the engine failed: load the model again")

    return refuse


async def test_a_message_refused_behind_another_chat_is_there_again(sit_down, monkeypatch):
    """Guards words said to an engine that failed: the remedy that was told, to load the model again, lost them."""
    may_refuse = threading.Event()
    async with sit_down() as person:
        screen = person.app.chat_screen
        await person.talks("first")
        await begins_new(person)
        await person.talks("second")
        chat = screen.chat
        monkeypatch.setattr(chat.conversation, "stream", refusing(may_refuse))
        await person.says("dear words")
        await person.until(lambda: chat.is_answering)
        await screen.pick("first")
        await person.does("load_again")
        may_refuse.set()
        await person.until(lambda: screen.chat.name == "first" and not person.app.session.is_open)
        await person.until(lambda: person.app.session.is_open)
        await person.misses("loading", "closing")
        await screen.pick("second")
        assert (prompt_of(person).text, len(person.history())) == ("dear words", 1)


async def test_a_message_that_waits_for_a_stopped_answer_is_there_again(sit_down):
    """Guards a message sent while the answer before it is stopped: the model was loaded again, and it was gone."""
    async with sit_down() as person:
        screen = person.app.chat_screen
        await person.talks("first")
        await begins_new(person)
        await person.talks("second")
        chat = screen.chat
        person.engine.hold.clear()
        await person.says("third")
        await person.until(lambda: chat.is_answering and chat.answering._stream is not None)
        chat.answering.is_stopping = True  # it takes a while to end
        await person.says("dear words")
        await person.until(lambda: not prompt_of(person).text)
        await screen.pick("first")
        await loads_again(person)
        await screen.pick("second")
        assert prompt_of(person).text == "dear words"
        assert [turn.user for turn in person.history()] == ["second", "third"]


async def test_a_refused_message_outlives_the_next(sit_down, monkeypatch):
    """Guards two messages sent to a chat that another one hides: the first was refused, the second overwrote it."""
    async with sit_down() as person:
        screen = person.app.chat_screen
        await person.talks("first")
        chat, may_refuse = screen.chat, threading.Event()

        def refuse(text, **_options):
            may_refuse.wait(PATIENCE_S)
            raise EdgeKVError(f"no {text}")

        monkeypatch.setattr(chat.conversation, "stream", refuse)
        await person.says("one")
        await person.until(lambda: chat.is_answering)
        chat.answering.is_stopping = True
        await person.says("two")
        await person.until(lambda: not prompt_of(person).text)
        await begins_new(person)
        may_refuse.set()
        await person.until(lambda: chat.answering.user == "two" and not chat.is_answering)
        await screen.pick("first")
        assert sorted(prompt_of(person).text.splitlines()) == ["one", "two"]


async def test_words_begun_are_kept_while_the_model_loads(sit_down):
    """Guards Ctrl+N while the model is loaded again: what was begun stayed with a chat of the closed session."""
    factory, may_load = FakeFactory(), threading.Event()
    may_load.set()

    def open_runtime(**options):
        may_load.wait(PATIENCE_S)
        return Runtime(engine_factory=factory, **options)

    async with sit_down(opener=open_runtime, factory=factory) as person:
        await person.talks("first")
        await person.types("dear words")
        may_load.clear()
        await person.does("load_again")
        await person.sees("loading the model")
        await begins_new(person)
        may_load.set()
        await person.until(lambda: person.app.session.is_open)
        await person.misses("loading", "dear words")
        await person.app.chat_screen.pick("first")
        assert prompt_of(person).text == "dear words"


async def test_a_draft_keeps_its_words_when_others_are_carried_to_it(sit_down, data_dir):
    """Guards two texts in one prompt: what was begun in the new chat was overwritten by what stood in a chat that
    ended with the session.
    """
    with Runtime(engine_factory=FakeFactory(), data_dir=data_dir) as first:
        first.conversation("kept").send("one")
        async with sit_down() as person:  # the directory is in use: its chats are in memory only
            screen, prompt = person.app.chat_screen, prompt_of(person)
            await begins_new(person)
            await person.talks("passing")
            passing = screen.chat
            await begins_new(person)
            await person.types("dear words")
            await person.until(lambda: prompt.text == "dear words")
            await screen.show(passing)
            await person.types("others")
            await person.until(lambda: prompt.text == "others")
            await loads_again(person)
            await person.until(lambda: screen.chat is not passing)
            assert screen.chat.conversation is None
            assert prompt.text == "dear words\nothers"


@pytest.mark.parametrize("is_shown", [False, True])
async def test_a_refused_first_message_is_in_the_next_draft(sit_down, monkeypatch, is_shown):
    """Guards the first words of a conversation that could not be begun, when another one was begun meanwhile."""
    may_refuse = threading.Event()
    async with sit_down() as person:
        screen = person.app.chat_screen
        await person.talks("first")
        await begins_new(person)
        monkeypatch.setattr(person.app.session, "create", refusing(may_refuse))
        await person.says("dear words")
        chat = screen.chat
        await person.until(lambda: chat.is_answering)
        await person.presses("ctrl+n")
        await person.until(lambda: screen.chat is not chat)
        if not is_shown:
            await screen.pick("first")
        may_refuse.set()
        await person.until(lambda: chat.is_idle)
        if not is_shown:
            await begins_new(person)
        assert prompt_of(person).text == "dear words"


async def test_going_back_while_another_chat_is_drawn(sit_down, monkeypatch):
    """Guards the program: the end of drawing the other chat looked there for the message that is edited here."""
    may_draw, show = asyncio.Event(), Transcript.show

    async def slowly(self, *args, **options):
        if not may_draw.is_set():
            await may_draw.wait()
        await show(self, *args, **options)

    async with sit_down() as person:
        screen = person.app.chat_screen
        await person.talks("first")
        await person.presses("f2")
        await person.types(" better")
        chat, draft = screen.chat, person.app.session.draft()
        monkeypatch.setattr(Transcript, "show", slowly)
        there = asyncio.ensure_future(screen.show(draft))
        await person.until(lambda: screen.chat is draft)
        back = asyncio.ensure_future(screen.show(chat))
        await person.until(lambda: screen.chat is chat)
        may_draw.set()
        await asyncio.gather(there, back)
        await person.presses("enter")
        await person.until(lambda: [turn.user for turn in person.history()] == ["first better"])
