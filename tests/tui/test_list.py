"""The list of conversations: keys pressed faster than it is drawn, and a list that changes under the hand."""

import asyncio
import threading

import pytest
from patience import PATIENCE_S
from textual import events

from edgekv_tui.widgets.chats import ChatList


async def test_the_key_after_going_to_the_list_is_for_the_list(sit_down):
    """Guards Enter pressed before the list is drawn: it opens what is marked, and sends nothing."""
    async with sit_down(size=(120, 30)) as person:
        await person.talks("about ships")
        await person.presses("ctrl+n")
        await person.misses("hello there")
        await person.types("not to be sent")
        person.bursts("ctrl+l", "enter")
        await person.sees("hello there", "about ships · ")
        assert [info.name for info in await person.app.session.infos()] == ["about ships"]


async def test_going_to_the_list_and_back_at_once(sit_down):
    """Guards the second Ctrl+L pressed before the first is drawn: what is typed next goes to the prompt."""
    async with sit_down(size=(120, 30)) as person:
        person.bursts("ctrl+l", "ctrl+l", *"back")
        await person.sees("back")


async def test_the_mark_stays_with_its_conversation(sit_down):
    """Guards opening another conversation than the one marked, because one that was answered moved to the top."""
    async with sit_down(size=(120, 30)) as person:
        for text in ("about ships", "about trains", "about planes"):
            await person.talks(text)
            await person.presses("ctrl+n")
            await person.misses("hello there")
        chats, session = person.app.chat_screen.query_one(ChatList), person.app.session
        await person.until(lambda: len(chats.options) == 3, "all of them")
        await person.presses("ctrl+l", "down")
        assert chats.highlighted_option.key == ("about trains", False)
        ships = await session.enter("about ships")
        session.answered(ships)
        await person.until(
            lambda: chats.options[0].key == ("about ships", False), "the list in its new order"
        )
        person.app.post_message(events.AppBlur())  # another window is in front meanwhile
        await person.until(lambda: person.app.focused is None)
        session.answered(await session.enter("about planes"))
        await person.until(lambda: chats.options[0].key == ("about planes", False), "the next order")
        person.app.post_message(events.AppFocus())
        await person.until(lambda: person.app.focused is chats)
        person.bursts("enter")
        await person.until(lambda: "about trains" in person.screen().splitlines()[0], "the title")


@pytest.mark.parametrize("again", [True, False])
async def test_a_slow_reading_of_the_list_loses_nothing_newer(sit_down, monkeypatch, again):
    """Guards the newest conversation: it vanished from the list if an older reading ended after it was answered."""
    async with sit_down(size=(120, 30)) as person:
        await person.talks("about ships")
        session, may_end = person.app.session, threading.Event()
        read = session.shelf.conversations

        def slow():
            found = read()
            may_end.wait(PATIENCE_S)
            return found

        monkeypatch.setattr(session.shelf, "conversations", slow)
        if not again:
            session._infos = None
        reading = asyncio.ensure_future(session.infos(again=again))
        await asyncio.sleep(0)
        await person.presses("ctrl+n")
        await person.misses("hello there")
        await person.talks("about trains")
        may_end.set()
        assert sorted(info.name for info in await reading) == ["about ships", "about trains"]
        assert sorted(session.known_names) == ["about ships", "about trains"]


async def test_the_list_is_there_beside_the_map(sit_down):
    """Guards Ctrl+L while F4's map hides the list: the focus went to what nobody sees, and words were lost."""
    async with sit_down(size=(120, 30)) as person:
        await person.talks("about ships")
        await person.presses("f4")
        await person.misses("● about ships")
        await person.presses("ctrl+l")
        await person.sees("● about ships")
        await person.presses("ctrl+l")
        await person.misses("● about ships")
