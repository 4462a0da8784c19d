"""The list of conversations: keys pressed faster than it is drawn, and a list that changes under the hand."""

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
        await person.presses("ctrl+l", "down")
        assert chats.highlighted_option.key == ("about trains", False)
        ships = await session.enter("about ships")
        session.answered(ships)
        await person.until(
            lambda: chats.options[0].key == ("about ships", False), "the list in its new order"
        )
        person.bursts("enter")
        await person.until(lambda: "about trains" in person.screen().splitlines()[0], "the title")
