"""Keys, themes, the palette, models and leaving."""

import asyncio
import os
import signal
import threading

import pytest
from fakes import FakeEngine, FakeFactory
from patience import PATIENCE_S

from edgekv import ConfigError, ModelLoadError, Runtime
from edgekv_tui.search.keeper import SearchKeeper
from edgekv_tui.settings import Settings, read_settings
from edgekv_tui.widgets.transcript import Transcript


async def test_keys_are_listed_and_changed(sit_down):
    """Guards F1 and chat.toml: a changed key works, is shown, and the one it replaces does nothing."""
    settings = Settings(keys={"chat.new": "f9"})
    async with sit_down(settings=settings) as person:
        await person.talks("hi")
        await person.sees("hello there")
        await person.presses("f1")
        await person.sees("Keys", "F9", "[chat.new]", "Ctrl+Q")
        await person.presses("escape", "ctrl+n")
        await person.pilot.pause()
        assert "hello there" in person.screen()
        await person.presses("f9")
        await person.misses("hello there")


def test_settings_that_name_nothing_are_refused(tmp_path, sit_down):
    """Guards misspelt settings: the error says which, and what was probably meant."""
    from edgekv_tui.app import ChatApp

    path = tmp_path / "chat.toml"
    path.write_text('theme = "ansi-drak"\n')
    with pytest.raises(ConfigError, match="did you mean 'ansi-dark'"):
        ChatApp(None, settings=read_settings(path))
    path.write_text('[keys]\n"chat.stpo" = "f9"\n')
    with pytest.raises(ConfigError, match=r"did you mean 'chat.stop'"):
        ChatApp(None, settings=read_settings(path))
    path.write_text("colour = 1\n")
    with pytest.raises(ConfigError, match="colour"):
        read_settings(path)


async def test_a_chosen_theme_is_remembered(sit_down, tmp_path):
    """Guards chat.toml: the theme is written, comments and keys stay."""
    path = tmp_path / "chat.toml"
    path.write_text('# mine\ntheme = "nord"\n[keys]\n"chat.new" = "f9"\n')
    async with sit_down(settings=read_settings(path), settings_file=path) as person:
        assert person.app.theme == "nord"
        for theme in ("ansi-dark", "nord", "ansi-light"):
            person.app.theme = theme
            await person.pilot.pause()
            assert read_settings(path).theme == theme, "also one that was left and is chosen again"
    assert path.read_text() == '# mine\ntheme = "ansi-light"\n[keys]\n"chat.new" = "f9"\n'


async def test_the_palette_finds_deeds(sit_down):
    """Guards Ctrl+P: what has no key is found by its words."""
    async with sit_down() as person:
        await person.presses("ctrl+p")
        await person.types("rename")
        await person.sees("Rename this conversation")
        await person.presses("down", "enter")
        await person.sees("Enter: go on")


async def test_the_palette_finds_conversations_and_has_a_key_of_its_own(sit_down):
    """Guards long lists, and a terminal that takes Ctrl+P for itself: F1 did not list it."""
    async with sit_down(settings=Settings(keys={"app.palette": "f9"})) as person:
        await person.talks("about trains")
        await person.presses("ctrl+n")
        await person.misses("about trains")
        await person.talks("about ships")
        await person.presses("f1")
        await person.sees("[app.palette]", "F9")
        await person.presses("escape")
        await person.misses("[app.palette]")
        await person.presses("ctrl+p")
        await person.presses("f9")
        await person.types("about trains")
        await person.sees("Go to this conversation")
        await person.presses("down", "enter")
        await person.until(lambda: [turn.user for turn in person.history()] == ["about trains"])


async def test_without_a_model_one_is_offered(sit_down, tmp_path, monkeypatch):
    """Guards the first start: what was found is listed, how to add one is said, one key begins with it."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "small.gguf").write_bytes(b"GGUF")
    factory = FakeFactory()

    def open_runtime(*, config, **options):
        if config.model is None:
            raise ModelLoadError("no model was chosen and the bundled one is not installed")
        return Runtime(config=config, engine_factory=factory, **options)

    async with sit_down(opener=open_runtime, factory=factory, waits=False) as person:
        await person.sees("no model was chosen", "small", "edgekv chat --model PATH")
        row = next(at for at, line in enumerate(person.found_models()) if line.name == "small")
        await person.presses(*["down"] * row, "enter")
        await person.until(lambda: person.app.session.is_open)
        await person.misses("loading", "edgekv chat --model")
        await person.talks("hi")
        await person.sees("hello there")


async def test_a_message_to_no_model_says_so(sit_down):
    """Guards a model that did not load: it was said to be loading still, for ever. Nothing written is lost."""
    factory, fails = FakeFactory(), [True]

    def open_runtime(**options):
        if fails:
            raise ModelLoadError("there is no model nosuch")
        return Runtime(engine_factory=factory, **options)

    async with sit_down(opener=open_runtime, factory=factory, waits=False, size=(120, 30)) as person:
        await person.sees("there is no model nosuch", "Esc, Ctrl+P, Use another model")
        await person.presses("escape")
        await person.misses("Enter: begin")
        await person.says("hi")
        await person.sees("no model is loaded; Ctrl+P: Use another model", "nothing was sent", "█ hi")
        assert "loaded; wait" not in person.screen()
        person.app.clear_notifications()  # they would lie over the line for five seconds
        await person.presses("ctrl+r")
        await person.sees("there is no message yet that could be answered again")
        fails.clear()
        await person.does("load_again")
        await person.until(lambda: person.app.session.is_open)
        await person.presses("enter")
        await person.sees("hello there")


async def test_a_failed_engine_is_told_and_loaded_again(sit_down):
    """Guards against a chat that ends, or hangs, because the engine did: what was said before is there again."""
    async with sit_down("a") as person:
        await person.talks("hi")
        person.engine.error = RuntimeError("no kernel")
        await person.says("more")
        await person.sees("internal error RuntimeError: no kernel")
        await person.does("load_again")
        await person.misses("loading", "closing", "internal error")
        person.engine.error = None
        await person.sees("hi", "more", "[no answer]")
        await person.presses("ctrl+r")
        await person.until(lambda: person.screen().count("hello there") == 2)


async def test_a_deed_does_not_end_the_loading_of_a_model(sit_down):
    """Guards F3 while the model is loaded again: it ended that, and the model was said to be loading for ever."""
    factory, may_load = FakeFactory(), threading.Event()
    may_load.set()

    def open_runtime(**options):
        may_load.wait(PATIENCE_S)
        return Runtime(engine_factory=factory, **options)

    async with sit_down(opener=open_runtime, factory=factory) as person:
        await person.talks("hi")
        may_load.clear()
        await person.does("load_again")
        await person.sees("loading the model")
        await person.presses("f3")
        await person.sees("Answer 1: hi")
        await person.presses("escape")
        may_load.set()
        await person.until(lambda: person.app.session.is_open)
        await person.misses("loading the model")
        await person.talks("more")
        assert [turn.user for turn in person.history()] == ["hi", "more"]


async def test_leaving_keeps_the_part_that_was_said(sit_down):
    """Guards Ctrl+Q in the middle of an answer."""
    async with sit_down("a", answer="word " * 2000, token_s=0.01, config={"max_tokens": 9000}) as person:
        await person.says("go on")
        await person.sees("word word")
        await person.presses("ctrl+q")
        await person.until(lambda: person.app.return_code is not None)
        assert person.app.return_code == 0
    async with sit_down("a") as person:
        await person.sees("word word", "[stopped]")


async def test_what_was_begun_outlives_a_new_session(sit_down):
    """Guards what was written when the model is loaded again: it was in another chat then, where Enter would have
    sent it, words begun in a private one among them, or gone, as an edit was.
    """
    async with sit_down("a") as person:
        screen = person.app.chat_screen
        prompt = screen.query_one("#prompt")
        await person.talks("hi")
        for begin, shows, private in (
            ("f2", "editing message 1", False),
            ("ctrl+n", "Nothing was said yet", False),
            ("ctrl+t", "PRIVATE", True),
        ):
            await person.presses(begin)
            await person.sees(shows)
            await person.types(" begun")
            await person.until(lambda: prompt.text.endswith("begun"))
            session, opens = person.app.session, person.app.session.num_opens
            await person.does("load_again")
            await person.until(lambda session=session, opens=opens: session.num_opens > opens)
            await person.misses("loading")
            await person.sees(shows)
            assert (screen.chat.private, screen.chat.conversation is None) == (private, begin != "f2")
            assert prompt.text == ("hi begun" if begin == "f2" else " begun")
        await person.presses("enter")
        await person.sees("hello there")
        assert [turn.user for turn in person.history()] == ["begun"]
        assert person.app.session.known_names == ["a"]
        await person.presses("ctrl+n")
        await person.until(lambda: prompt.text == " begun", "what was begun in the other one")


async def test_a_message_that_a_failed_engine_refused_is_not_lost(sit_down, monkeypatch):
    """Guards words said to an engine that died: they stood in the conversation as a turn that nobody had kept, and
    were gone with the next one shown.
    """

    def fail(_engine):
        raise RuntimeError("no kernel")

    async with sit_down("a") as person:
        screen = person.app.chat_screen
        prompt = screen.query_one("#prompt")
        await person.talks("hi")
        worker = person.app.session.runtime._worker
        with monkeypatch.context() as patch:
            patch.setattr(FakeEngine, "is_loaded", property(fail), raising=False)  # asked between two jobs
            worker.call(lambda _engine: None)
            await person.until(lambda: worker._failure is not None)
        await person.says("more")
        await person.sees("the engine failed (RuntimeError: no kernel)")
        await person.until(lambda: prompt.text == "more", "the message in the prompt")
        assert "[no answer]" not in person.screen()
        await person.does("load_again")
        await person.misses("loading", "closing", "failed")
        assert prompt.text == "more"
        await person.presses("enter")
        await person.until(lambda: [turn.user for turn in person.history()] == ["hi", "more"])


async def test_signals_wait_until_all_is_kept(sit_down, monkeypatch):
    """Guards a window that is closed: it may say so twice, somebody may be searching, and KV is being written.
    Only once it is written may the process end by the clock.
    """
    is_searching, may_go_on, left = threading.Event(), threading.Event(), []
    read = SearchKeeper._read

    async def slow_read(*what):
        is_searching.set()
        await asyncio.to_thread(may_go_on.wait, 10)
        await read(*what)

    async with sit_down("a") as person:
        await person.talks("hi")
        monkeypatch.setattr(SearchKeeper, "_read", slow_read)
        close = person.app.session.runtime.close
        person.app.session.runtime.close = lambda: (may_go_on.wait(PATIENCE_S), close())
        person.app.on_left = left.append
        await person.presses("ctrl+f")
        await person.until(is_searching.is_set)
        for _ in range(2):
            os.kill(os.getpid(), signal.SIGHUP)
            await person.pilot.pause(0.03)
        assert (left, person.app._exit) == ([], False)
        may_go_on.set()
        await person.until(lambda: left)
        assert left == [person.app.return_value] == [128 + signal.SIGHUP]


async def test_a_conversation_chosen_while_leaving_is_no_error(sit_down, monkeypatch):
    """Guards Ctrl+N right before the end: the screen was taken away in the middle of showing an empty chat."""
    async with sit_down("a") as person:
        with monkeypatch.context() as patch:
            patch.setattr(Transcript, "is_attached", property(lambda _transcript: False))
            await person.app.chat_screen.action_new()


async def test_asked_twice_it_leaves_at_once(sit_down):
    """Guards a person who does not want to wait: the first Ctrl+Q says how, the second does it."""
    may_close, left = threading.Event(), []
    async with sit_down() as person:
        close = person.app.session.runtime.close
        person.app.session.runtime.close = lambda: (may_close.wait(PATIENCE_S), close())
        person.app.on_left = left.append
        await person.presses("ctrl+q")
        await person.sees("Ctrl+Q again: do not wait")
        await person.presses("ctrl+q")
        await person.until(lambda: left)
        may_close.set()
        assert person.app._exit


async def test_a_passphrase_is_asked_for_unseen(sit_down, monkeypatch):
    """Guards a protected data directory: the question is on the screen, the answer is not."""
    asked = []

    def open_runtime(*, passphrase, **options):
        asked.append(passphrase("Passphrase of these conversations"))
        return Runtime(engine_factory=FakeFactory(), **options)

    async with sit_down(opener=open_runtime, waits=False) as person:
        await person.sees("Passphrase of these conversations")
        await person.types("xyzzy")
        assert "xyzzy" not in person.screen()
        await person.presses("enter")
        await person.misses("Passphrase", "loading")
        assert asked == ["xyzzy"]
