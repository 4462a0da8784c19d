"""What changes many times a second is laid out only when it takes another row."""

import pytest
from textual._compositor import Compositor
from textual.app import App

from edgekv_tui.widgets.answer import Answer
from edgekv_tui.widgets.status import Status


class Both(App):
    """An answer above the status line."""

    def compose(self):
        yield Answer("It begins")
        yield Status("…")


@pytest.fixture
def layouts(monkeypatch):
    """One entry for each layout of the whole screen."""
    done = []
    reflow = Compositor.reflow

    def counted(self, *arguments):
        done.append(arguments)
        return reflow(self, *arguments)

    monkeypatch.setattr(Compositor, "reflow", counted)
    return done


async def test_words_in_the_same_row_are_shown_without_a_layout(layouts):
    """Guards the keys of a person: with 500 messages a layout took 30 ms, and there were two for each token."""
    app = Both()
    async with app.run_test(size=(40, 12)) as pilot:
        await pilot.pause()
        answer = app.query_one(Answer)
        paragraph = answer.children[0]
        layouts.clear()
        await answer.append(" and **goes** on")
        app.query_one(Status).say("answering · 4 tokens")
        await pilot.pause()
        assert layouts == []
        assert [str(paragraph.render()), str(app.query_one(Status).render())] == [
            "It begins and goes on",
            "answering · 4 tokens",
        ]


async def test_another_row_is_made_room_for(layouts):
    """Guards the end of what is said: no row is cut off, and none stays empty."""
    app = Both()
    async with app.run_test(size=(40, 12)) as pilot:
        await pilot.pause()
        answer, status = app.query_one(Answer), app.query_one(Status)
        await answer.append(" word" * 10)
        status.say("word " * 10)
        await pilot.pause()
        assert [answer.children[0].size.height, status.size.height] == [2, 2]
        status.say("")
        await pilot.pause()
        assert status.size.height == 1


async def test_another_row_takes_one_layout(layouts):
    """Guards the keys of a person: Textual laid the whole screen out again for the sizes a layout had found."""
    app = Both()
    async with app.run_test(size=(40, 12)) as pilot:
        await pilot.pause()
        layouts.clear()
        await app.query_one(Answer).append(" word" * 10)
        await pilot.pause()
        await pilot.pause()
        assert len(layouts) == 1
