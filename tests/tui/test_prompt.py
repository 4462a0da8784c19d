"""Writing: what is sent is what was written, whatever the prompt shows of it."""

import pytest

from edgekv import Unsupported
from edgekv_tui import editor
from edgekv_tui.widgets.prompt import Prompt
from edgekv_tui.written import Written


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
        await person.presses("f2")
        await person.until(lambda: prompt.text == f"{long} end", "the long message, to be edited")


async def test_a_paste_may_look_like_another(sit_down):
    """Guards what is sent: a mark within pasted text is text."""
    async with sit_down() as person:
        prompt = prompt_of(person)
        pastes = ["a [paste 2: 9 lines]" + "\n" * 8, "b [paste 1: 9 lines]" + "\n" * 8]
        for number, text in enumerate(pastes, 1):
            person.pastes(text)
            await person.until(lambda number=number: f"[paste {number}: 9 lines]" in prompt.text)
        assert prompt.whole_text == "".join(pastes)


async def test_a_paste_that_could_not_be_sent_stays_folded(sit_down):
    """Guards a message refused while an answer is made: it came back as all its lines."""
    async with sit_down(answer="word " * 2000, token_s=0.01, config={"max_tokens": 9000}) as person:
        prompt, long = prompt_of(person), "\n".join(f"line {number}" for number in range(90))
        await person.says("go on")
        await person.sees("Esc stops")
        person.pastes(long)
        await person.sees("[paste 1: 90 lines]")
        await person.types(" end")
        await person.presses("enter")
        await person.sees("An answer is being made")
        await person.until(lambda: prompt.text == "[paste 1: 90 lines] end")
        assert prompt.whole_text == f"{long} end"
        kept = prompt.written
        prompt.empty()
        prompt.insert("since")
        prompt.give_back(kept)
        assert prompt.text == "[paste 1: 90 lines] end\nsince"
        assert prompt.whole_text == f"{long} end\nsince"
        prompt.give_back(Written("older"))
        assert prompt.whole_text == f"older\n{long} end\nsince"


async def test_blanks_are_not_sent(sit_down):
    """Guards Enter pressed by accident."""
    async with sit_down() as person:
        await person.presses("space", "enter")
        await person.pilot.pause()
        assert person.history() == []


async def test_the_editor_gets_the_message_and_returns_it(sit_down, monkeypatch, tmp_path):
    """Guards Ctrl+G: the file is in memory, readable by its owner alone, and gone afterwards."""
    (mounts := tmp_path / "mounts").write_text(f"a / ext4 rw 0 0\na {tmp_path}/run tmpfs rw 0 0\n")
    monkeypatch.setattr(editor, "MOUNTS", mounts)
    (run := tmp_path / "run").mkdir()
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(run))
    monkeypatch.setenv("VISUAL", 'sh -c \'stat -c %a "$1" >> "$1"; echo more >> "$1"\' editor')
    assert editor.edit("text\n") == "text\n600\nmore"
    assert list(run.iterdir()) == []
    mounts.write_text("a / ext4 rw 0 0\n")
    with pytest.raises(Unsupported, match="no folder in memory"):
        editor.edit("text\n")
    async with sit_down() as person:
        await person.presses("ctrl+g")
        await person.sees("cannot be handed to an editor")  # the tests' terminal is none


def test_the_editor_is_a_command(monkeypatch, tmp_path):
    """Guards a broken $EDITOR, which ended the chat, and Vim's copies of what is written in it."""
    for name in ("vim.basic", "busybox"):
        (tmp_path / name).touch(mode=0o700)
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setenv("VISUAL", " ")
    monkeypatch.setenv("EDITOR", "vi -u NONE")
    (tmp_path / "vi").symlink_to("busybox")
    assert editor.editor_command() == ["vi", "-u", "NONE"]
    (tmp_path / "vi").unlink()
    (tmp_path / "vi").symlink_to("vim.basic")
    assert editor.editor_command() == ["vi", "-u", "NONE", *editor.VIM_KEEPS_NOTHING]
    monkeypatch.setenv("VISUAL", "vim 'unended")
    with pytest.raises(Unsupported, match="VISUAL or EDITOR is no command"):
        editor.editor_command()
