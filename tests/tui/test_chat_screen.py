"""What a person does most in the chat, and sees while doing it."""

import asyncio
import dataclasses
import threading

from fakes import FakeFactory
from patience import PATIENCE_S
from textual import events

from edgekv import ModelLoadError, Runtime
from edgekv.conversation.kept import kept_conversations
from edgekv_tui import quiet
from edgekv_tui.app import ChatApp
from edgekv_tui.screens.chat import ChatScreen
from edgekv_tui.widgets import prompt, transcript
from edgekv_tui.widgets.answer import Answer

MARKDOWN = "Two **bold** words:\n\n- first\n- second\n\n```python\nx = 1\n```\n"


def names(data_dir):
    return [info.name for info in kept_conversations(data_dir)]


async def test_a_message_is_answered_as_markdown_and_kept(sit_down, data_dir):
    """Guards the path everything rests on: the marks of Markdown are gone, its text is there."""
    async with sit_down(answer=MARKDOWN) as person:
        await person.types("hi there")
        await person.presses("enter")
        await person.sees("hi there", "Two bold words", "• first", "x = 1", "exact;", "tokens at")
        assert "**" not in person.screen()
        await person.until(lambda: "hi there" in person.screen().splitlines()[0], "its name in the title")
    assert names(data_dir) == ["hi there"]


async def test_a_link_is_copied_and_not_opened(sit_down):
    """Guards that nothing leaves the machine by itself, and the name that Textual calls the handler by."""
    async with sit_down(answer="see [it](https://example.org/x)") as person:
        await person.says("hi")
        await person.sees("see it", "tokens at")
        answer = person.app.chat_screen.query_one(Answer)
        answer.post_message(Answer.LinkClicked(answer, "https://example.org/x"))
        await person.sees("copied: https://example.org/x")


async def test_the_screen_is_there_before_the_model(sit_down):
    """Guards a start that waits for gigabytes: one can write meanwhile, and nothing written is lost."""
    may_load = threading.Event()

    def slow(**options):
        may_load.wait(PATIENCE_S)
        return Runtime(engine_factory=FakeFactory(), **options)

    async with sit_down(opener=slow, waits=False) as person:
        await person.sees("loading the model")
        await person.types("early")
        await person.presses("enter")
        await person.sees("still being loaded", "early")
        await person.presses("ctrl+f")
        await person.sees("the model is still being loaded; wait")  # and not an internal error
        await person.presses("escape")
        may_load.set()
        await person.misses("loading the model")
        await person.presses("enter")
        await person.sees("hello there")


async def test_the_model_is_loaded_once_the_first_screen_is_drawn(sit_down, monkeypatch):
    """Guards the start: a thread that loads torch holds the interpreter, and the prompt came later."""
    drawn, drawn_before = [], []
    display = ChatApp._display

    def shows(app, screen, renderable):
        drawn.append(renderable)
        display(app, screen, renderable)

    def opens(**options):
        drawn_before.append(len(drawn) > 0)
        return Runtime(engine_factory=FakeFactory(), **options)

    monkeypatch.setattr(ChatApp, "_display", shows)
    async with sit_down(opener=opens) as person:
        await person.says("hi")
    assert drawn_before == [True]


async def test_a_model_that_does_not_load_is_told_in_one_line(sit_down):
    """Guards against a traceback, or a chat that seems to wait for ever."""

    def fail(**_options):
        raise ModelLoadError("the file x.gguf ends too early; load it again")

    async with sit_down(opener=fail, waits=False) as person:
        await person.sees("the file x.gguf ends too early; load it again")


async def test_escape_stops_an_answer_and_keeps_its_part(sit_down, data_dir):
    """Guards stopping while tokens come: the part stays, marked, also after a restart."""
    async with sit_down(answer="word " * 2000, token_s=0.01, config={"max_tokens": 9000}) as person:
        await person.says("go on")
        await person.sees("word word", "Esc stops")
        await person.presses("escape")
        await person.sees("[stopped]")
    async with sit_down() as person:
        await person.sees("go on", "word word", "[stopped]")


async def test_escape_stops_the_reading_of_a_long_message(sit_down):
    """Guards stopping in prefill (llama-cpp-python#599), with the progress on the screen."""
    async with sit_down(config={"attention": "selected"}) as person:
        person.engine.blocks = threading.Semaphore(20)  # and then it waits until it is stopped
        await person.says("x" * 30_000)
        await person.sees("reading", "of 30,0", "tokens", "Esc stops")
        await person.presses("escape")
        await person.sees("[stopped] before the first token; 0 of 30,")
        assert not any(text in person.screen() for text in ("0 tokens", "/s", "first after"))
        await person.presses("f4")
        await person.sees("stopped before the first token")
        await person.presses("f3")
        await person.sees("you stopped it")
        found = [text for text in ("exactness", "writing", "exact:") if text in person.screen()]
        assert found == [], person.screen()
        assert person.engine.computed_tokens < 20_000


async def test_a_reopened_conversation_says_what_was_restored(sit_down, data_dir):
    """Guards "restored" that is claimed and not measured: reused tokens are the engine's own count, and why others
    are missing is not guessed.
    """
    async with sit_down() as person:
        await person.talks("one")
        await person.sees("hello there")
    async with sit_down("one") as person:
        await person.sees("one", "hello there")
        await person.says("two")
        await person.sees("0 of ", "tokens restored in", "exact;")
        assert not any(why in person.screen() for why in ("again", "evicted", "damaged"))


async def test_a_new_chat_and_back(sit_down, data_dir):
    """Guards the list: a draft is kept nowhere before its first message; picking shows the picked one."""
    async with sit_down(size=(120, 30)) as person:
        await person.talks("about trains")
        await person.sees("hello there")
        await person.presses("ctrl+n")
        await person.misses("hello there")
        assert names(data_dir) == ["about trains"]
        await person.talks("about ships")
        await person.sees("hello there", "● about ships")
        await person.presses("ctrl+l", "down", "enter")
        await person.sees("● about trains")
        await person.until(lambda: "about trains" in person.screen().splitlines()[0], "the title")
    assert sorted(names(data_dir)) == ["about ships", "about trains"]


async def test_an_answer_goes_on_behind_another_conversation(sit_down):
    """Guards switching while an answer is being made: it is neither stopped nor shown in the wrong place."""
    async with sit_down(size=(120, 30)) as person:
        person.engine.hold.clear()
        await person.says("slow one")
        await person.sees("Esc stops")
        await person.presses("ctrl+n")
        await person.misses("Esc stops")
        person.engine.hold.set()
        await person.sees("slow one")  # in the list
        assert "hello there" not in person.screen()
        await person.presses("ctrl+l", "enter")
        await person.sees("hello there")


async def test_switching_in_the_middle_of_drawing_stops_nothing(sit_down):
    """Guards an answer whose view goes away while it is laid out: it is answered to its end all the same."""
    answer = "".join(f"- **item {n}** with `code`\n\n| a | b |\n|---|---|\n| {n} | 2 |\n\n" for n in range(8))
    async with sit_down(answer=answer, token_s=0.0005, config={"max_tokens": 4000}) as person:
        screen = person.app.chat_screen
        await person.says("go on")
        await person.sees("Esc stops")
        chat, other = screen.chat, person.app.session.draft()
        for pause in (0.0, 0.01, 0.03, 0.05):
            await screen.show(other)
            await asyncio.sleep(pause)
            await screen.show(chat)
            await asyncio.sleep(pause)
        await person.until(lambda: chat.num_answers == 1)
        assert person.history()[0].answer == answer


async def test_only_the_last_turns_are_mounted_and_earlier_ones_come(sit_down, data_dir, monkeypatch):
    """Guards long histories: layout takes time for what is mounted, and nothing said is out of reach."""
    monkeypatch.setattr(transcript, "MOUNTED_TURNS", 8)
    with Runtime(engine_factory=FakeFactory(), data_dir=data_dir) as runtime:
        runtime.conversation("a").add_exchanges([(f"question {n}", f"answer {n}") for n in range(20)])
    async with sit_down("a") as person:
        shown = person.app.chat_screen.query_one("#transcript")
        await person.sees("question 19", "answer 19")
        assert [view.number for view in shown.views] == list(range(12, 20))
        for first in (4, 0):
            await shown.show_earlier()
            assert [view.number for view in shown.views] == list(range(first, 20))
        await person.talks("one more")
        await person.sees("one more", "hello there")
        assert [view.number for view in shown.views] == list(range(5, 21))
        shown.scroll_home(animate=False)
        await person.until(lambda: shown.views[0].number == 0, "those before them")
        await shown.reveal(5)
        await person.sees("question 5", "answer 5")


async def test_a_tall_window_is_filled(sit_down, data_dir, monkeypatch):
    """Guards the turns before those that are mounted: where all of these are seen, none can be scrolled to."""
    monkeypatch.setattr(transcript, "MOUNTED_TURNS", 2)
    with Runtime(engine_factory=FakeFactory(), data_dir=data_dir) as runtime:
        runtime.conversation("a").add_exchanges([(f"question {n}", f"answer {n}") for n in range(20)])
    async with sit_down("a", size=(80, 60)) as person:
        await person.sees("question 19", "question 12")
        shown = person.app.chat_screen.query_one("#transcript")
        await person.until(lambda: shown.max_scroll_y > 0)
        assert 0 < shown.views[0].number <= 12
        await person.sees("question 19")


async def test_a_key_is_drawn_before_more_of_the_answer(sit_down, monkeypatch):
    """Guards the letters of a person: an update that came between a key and its frame took both 40 ms further."""
    monkeypatch.setattr(prompt, "LONGEST_DRAW_S", 20)
    drawn = []
    async with sit_down() as person:
        app, written = person.app, person.app.chat_screen.query_one("#prompt")
        display = app._display
        monkeypatch.setattr(app, "_display", lambda *shown: (drawn.append(written.text), display(*shown)))
        for text in ("x", "xy"):
            drawn.clear()
            written.post_message(events.Key(text[-1], text[-1]))
            await person.until(lambda text=text: written.text == text)
            await written.until_drawn()
            assert text in drawn


async def test_garbage_is_looked_for_when_nobody_waits(sit_down, monkeypatch):
    """Guards keys while an answer streams, and memory: once a conversation is shown, and after answers that nobody
    goes on to write after.
    """
    monkeypatch.setattr(quiet, "QUIET_S", 0.01)
    done = []
    monkeypatch.setattr(
        ChatApp, "get_default_screen", lambda app: ChatScreen(app.session, {}, lambda: done.append(1))
    )
    async with sit_down() as person:
        await person.until(lambda: done == [1])
        await person.talks("hi")
        await person.until(lambda: done == [1, 1])


async def test_what_was_begun_stays_with_its_conversation(sit_down):
    """Guards private words: written in one chat, they are not sent in another."""
    async with sit_down() as person:
        await person.presses("ctrl+t")
        await person.sees("PRIVATE")
        await person.types("a secret")
        await person.presses("ctrl+n")
        await person.misses("PRIVATE", "a secret")
        await person.talks("hi")
        assert [turn.user for turn in person.history()] == ["hi"]


async def test_a_message_goes_where_it_was_written(sit_down):
    """Guards words sent in another chat: a message waits for the stopped answer, and Ctrl+T is faster."""
    async with sit_down() as person:
        may_stop = threading.Event()
        person.engine._may_go_on = lambda is_cancelled: may_stop.wait(PATIENCE_S) and not is_cancelled()
        await person.says("one")
        await person.sees("Esc stops")
        chat = person.app.chat_screen.chat
        await person.presses("escape")
        await person.says("two")
        await person.until(lambda: person.app.chat_screen.query_one("#prompt").text == "")
        person.app.simulate_key("ctrl+t")
        await person.until(lambda: person.app.chat_screen.chat is not chat)
        may_stop.set()
        await person.until(lambda: chat.num_answers == 2)
        assert [turn.user for turn in chat.history()] == ["one", "two"]
        assert person.history() == []
        assert "two" not in person.app.chat_screen.query_one("#prompt").text
        await person.sees("PRIVATE", "nothing of it is written to disk")


async def test_a_private_chat_leaves_nothing(sit_down, data_dir):
    """Guards the promise of Ctrl+T: a cue on the screen, no name in the list of kept ones, no bytes, no editor.
    Nothing is encrypted, so the words of a kept chat are found where those of the private one are looked for.
    """
    async with sit_down("kept", size=(120, 30), config={"encryption": "off"}) as person:
        await person.talks("canary-plugh")
        await person.presses(
            "ctrl+t", "ctrl+g"
        )  # at once: what it answers is not wiped by the new chat's drawing
        await person.sees("editors keep copies on disk")
        await person.presses("ctrl+t")
        await person.sees("PRIVATE", "nothing of it is written to disk")
        await person.talks("canary-xyzzy")
        await person.sees("hello there")
        assert person.app.screen.has_class("-private")
        assert [info.name for info in person.app.session.runtime.conversations()] == ["kept"]
    kept = [path.read_bytes() for path in data_dir.rglob("*") if path.is_file()]
    assert any(b"canary-plugh" in file for file in kept)
    assert not any(b"canary-xyzzy" in file for file in kept)


async def test_control_characters_never_reach_the_terminal(sit_down):
    """Guards the terminal against an answer that moves the cursor, sets the title or turns text around."""
    async with sit_down(answer="a\x1b]0;owned\x07b\x1b[2J\u202ec [bold]d[/bold]") as person:
        await person.says("[red]x[/red]\x1b[31m")
        await person.sees(r"a\x1b]0;owned\x07b\x1b[2J\u202ec [bold]d[/bold]", r"[red]x[/red]\x1b[31m")
        strips = person.strips()
        assert not any("\x1b" in segment.text for strip in strips for segment in strip)


async def test_regenerate_answers_again(sit_down):
    """Guards Ctrl+R, alone and while an answer is being made."""
    async with sit_down() as person:
        await person.presses("ctrl+r")
        await person.sees("no message yet")
        await person.talks("again")
        await person.sees("hello there")
        person.engine.answer = "something else"
        await person.presses("ctrl+r")
        await person.sees("something else")
        assert "hello there" not in person.screen()


async def test_an_answer_reads_nothing_of_other_conversations(sit_down, monkeypatch):
    """Guards long lists: the first answer of each new chat decrypted every stored turn."""
    async with sit_down(size=(120, 40)) as person:
        await person.talks("one")
        with monkeypatch.context() as patch:
            patch.setattr(Runtime, "conversations", None)  # opens them all
            await person.presses("ctrl+n")
            await person.until(lambda: not person.history())
            await person.talks("second")
            await person.until(lambda: [info.name for info in person.app.session._infos] == ["second", "one"])
        assert [expect for _, expect, _ in person.engine.hints] == ["user", "user"]


async def test_a_message_is_edited_while_it_is_answered(sit_down):
    """Guards the program: the turn was another one, by value, once its answer had come, and sending ended it all.
    What was written meanwhile was lost where one went away and came back."""
    async with sit_down(answer="alpha beta gamma delta omega " * 6, token_s=0.01) as person:
        screen = person.app.chat_screen
        await person.says("first")
        await person.sees("alpha")
        await person.presses("f2")
        await person.until(lambda: screen._editing is not None)
        await person.types(" better")
        chat = screen.chat
        await person.presses("ctrl+n")
        await person.until(lambda: screen.chat is not chat and not chat.is_answering)
        await screen.show(chat)
        assert screen.query_one("#prompt").text == "first better"
        await person.presses("enter")
        await person.until(lambda: [turn.user for turn in person.history()] == ["first better"])
        await person.until(lambda: not chat.is_answering)
        assert [turn.user for turn in chat.conversation.turns()] == ["first", "first better"]


async def test_words_outlive_the_message_that_they_edit(sit_down):
    """Guards what is written: where the edited message is on another branch now, it goes back to the prompt."""
    async with sit_down(answer="yes") as person:
        screen = person.app.chat_screen
        await person.says("first")
        await person.until(lambda: not screen.chat.is_answering and len(person.history()) == 1)
        await person.presses("f2")
        await person.until(lambda: screen._editing is not None)
        screen._editing = dataclasses.replace(screen._editing, id=99)
        await person.presses("enter")
        await person.sees("not on this branch any more")
        assert (screen.query_one("#prompt").text, screen._editing) == ("first", None)
        await person.presses("enter")
        await person.until(lambda: [turn.user for turn in person.history()] == ["first", "first"])


async def test_an_answers_end_waits_for_no_key(sit_down, monkeypatch):
    """Guards the end of an answer: it waited for a letter to be drawn, the next message was sent meanwhile, and
    neither the end nor the figures of the first were ever shown; they became the second's."""
    waited = []

    async def until_drawn(self):
        waited.append(self.app.chat_screen.chat.answering.has_ended)

    async with sit_down(answer="alpha beta", token_s=0.02) as person:
        monkeypatch.setattr(prompt.Prompt, "until_drawn", until_drawn)
        await person.says("first")
        await person.until(lambda: not person.app.chat_screen.chat.is_answering)
        await person.sees("alpha beta")
    assert waited
    assert not any(waited)
