"""Writing: what is sent is what was written, whatever the prompt shows of it."""

from edgekv_tui.widgets.prompt import Prompt


def prompt_of(person):
    return person.app.chat_screen.query_one(Prompt)


async def test_lines_pastes_and_history(sit_down):
    """Guards the prompt: new lines do not send, long pastes are folded and sent whole, Up brings back what was
    said and Down what had been begun.
    """
    async with sit_down() as person:
        prompt, long = prompt_of(person), "\n".join(f"line {number}" for number in range(400))
        await person.types("one")
        await person.presses("ctrl+j")
        await person.types("two\r")
        await person.sees("hello there")
        assert person.history()[-1].user == "one\ntwo"
        person.pastes(long)
        await person.sees("[paste 1: 400 lines]")
        await person.types(" end")
        await person.presses("enter")
        await person.until(lambda: len(person.history()) == 2)
        assert person.history()[-1].user == f"{long} end"
        await person.until(lambda: len(person.app.chat_screen.chat.results) == 2)
        await person.misses("Esc stops")
        await person.types("begun")
        await person.presses("up")
        await person.until(lambda: prompt.whole_text == f"{long} end")
        await person.presses("up")
        await person.until(lambda: prompt.text == "one\ntwo")
        await person.presses("down", "down", "down")
        await person.until(lambda: prompt.text == "begun")
        person.pastes("short\r\npaste")
        await person.until(lambda: prompt.text == "begunshort\npaste")


async def test_blanks_are_not_sent(sit_down):
    """Guards Enter pressed by accident."""
    async with sit_down() as person:
        await person.presses("space", "enter")
        await person.pilot.pause()
        assert person.history() == []


async def test_the_editor_gets_the_message_and_returns_it(sit_down, monkeypatch, tmp_path):
    """Guards Ctrl+G: the file is in memory, readable by its owner alone, and gone afterwards."""
    from edgekv_tui.editor import edit

    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path))
    monkeypatch.setenv("VISUAL", 'sh -c \'stat -c %a "$1" >> "$1"; echo more >> "$1"\' editor')
    assert edit("text\n") == "text\n600\nmore"
    assert list(tmp_path.iterdir()) == []
    async with sit_down() as person:
        await person.presses("ctrl+g")
        await person.sees("cannot be handed to an editor")  # the tests' terminal is none
