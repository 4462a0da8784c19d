"""The full-screen chat over a real Runtime with a fake engine, used as a person uses it: keys in, screen out."""

import asyncio
import inspect
import time
from contextlib import asynccontextmanager

import pytest
from fakes import FakeFactory
from patience import PATIENCE_S
from textual import events
from textual._context import visible_screen_stack
from textual.css.stylesheet import Stylesheet
from textual.keys import _character_to_key

from edgekv import Config, Runtime, found_models
from edgekv_tui.app import ChatApp
from edgekv_tui.screens import pages
from edgekv_tui.session import Session
from edgekv_tui.widgets import memory


@pytest.hookimpl(tryfirst=True)
def pytest_pyfunc_call(pyfuncitem):
    """Runs `async def` tests."""
    if not inspect.iscoroutinefunction(pyfuncitem.obj):
        return None
    names = pyfuncitem._fixtureinfo.argnames
    asyncio.run(pyfuncitem.obj(**{name: pyfuncitem.funcargs[name] for name in names}))
    return True


@pytest.fixture(scope="session", autouse=True)
def styles_are_parsed_once():
    """Every app parses the same style sheets: a third of its start."""
    parse, known = Stylesheet._parse_rules, {}

    def parse_once(self, css, *source, **options):
        key = (css, source, *sorted(options.items()), frozenset(self._variables.items()))
        if key not in known:
            known[key] = parse(self, css, *source, **options)
        return known[key]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Stylesheet, "_parse_rules", parse_once)
        yield


class Person:
    """Someone in front of the chat."""

    def __init__(self, app, pilot, factory):
        self.app = app
        self.pilot = pilot
        self.factory = factory

    @property
    def engine(self):
        return self.factory.engine

    def screen(self):
        """What the terminal shows, as text."""
        return "\n".join("".join(segment.text for segment in strip).rstrip() for strip in self.strips())

    def strips(self):
        """What the terminal shows, line by line, with its styles."""
        visible_screen_stack.set(self.app._background_screens)  # what is drawn below dialogs, as Textual does
        return self.app.screen._compositor.render_strips()

    async def sees(self, *texts, times=1):
        """Wait until all `texts` are on the screen (each at least `times`)."""

        def all_are_there():
            screen = self.screen()
            return all(screen.count(text) >= times for text in texts)

        await self.until(all_are_there, texts)

    async def misses(self, *texts):
        """Wait until none of `texts` is on the screen."""

        def none_is_there():
            screen = self.screen()
            return not any(text in screen for text in texts)

        await self.until(none_is_there, f"no {texts}")

    async def until(self, condition, what="it"):
        deadline, pause = time.monotonic() + PATIENCE_S, 0.004
        while not condition():
            assert time.monotonic() < deadline, f"waited for {what}; there is:\n{self.screen()}"
            await asyncio.sleep(pause)
            pause = min(0.05, pause * 1.5)

    async def presses(self, *keys):
        """Press keys one after the other. (Pilot.press waits 0.1 s for each until the processor is idle.)"""
        for key in keys:
            self.bursts(key)
            await self.pilot._wait_for_screen()  # the app hands the key on
            await self.pilot._wait_for_screen()  # whoever has the focus takes it

    def bursts(self, *keys):
        """Press keys faster than the screen can follow: all are there before the first one does anything."""
        for key in keys:
            self._press(key)

    async def types(self, text):
        """Type `text` faster than the screen can follow; "\r" is Enter."""
        self.bursts(*text)
        await self.pilot._wait_for_screen()

    def _press(self, key):
        character = key if len(key) == 1 and key != "\r" else None
        name = "enter" if key == "\r" else _character_to_key(key) if character else key
        event = events.Key(name, character)
        event.set_sender(self.app)
        self.app.post_message(event)  # not by way of the driver: its events come after what is waited for

    def pastes(self, text):
        self.app.chat_screen.query_one("#prompt").post_message(events.Paste(text))

    def history(self):
        return self.app.chat_screen.chat.history()

    def found_models(self):
        return found_models(self.app.session.config)

    async def does(self, deed):
        """Choose a deed, as the palette does, and wait for what it shows first."""
        self.app.chat_screen.action_deed(deed)
        await self.pilot.pause()

    async def answers(self, text):
        """Fill in the line of a dialog."""
        await self.until(lambda: self.app.screen.query("Input"), "a dialog")
        dialog = self.app.screen
        dialog.query_one("Input").value = text
        await self.presses("enter")
        await self.until(lambda: dialog not in self.app.screen_stack, "the dialog to close")

    async def talks(self, text):
        """Send a message and wait until its answer is there."""
        screen = self.app.chat_screen
        chat, before = screen.chat, screen.chat.num_answers
        await self.says(text)
        await self.until(
            lambda: chat.num_answers > before and screen._view is None, f"an answer to {text[:40]!r}"
        )

    async def says(self, text):
        """Send a message that is pasted, not typed, so that tests are fast."""
        self.app.chat_screen.query_one("#prompt").insert(text)
        await self.presses("enter")


@pytest.fixture
def sit_down(data_dir, monkeypatch):
    """`async with sit_down(...) as person`: the chat, opened over the test's data directory."""
    monkeypatch.setattr(memory, "EVERY_S", 0.1)
    monkeypatch.setattr(pages, "EVERY_S", 0.1)

    @asynccontextmanager
    async def sit_down(
        name=None,
        *,
        size=(80, 24),
        private=False,
        factory=None,
        waits=True,
        opener=None,
        config=None,
        settings=None,
        settings_file=None,
        **fake,
    ):
        factory = factory or FakeFactory(**fake)

        def open_runtime(**options):
            return Runtime(engine_factory=factory, **options)

        config = Config(data_dir=data_dir, **(config or {}))
        session = Session(config, durable=not private, opener=opener or open_runtime)
        app = ChatApp(session, name, private=private, settings=settings, settings_file=settings_file)
        app.animation_level = "none"
        async with app.run_test(size=size, notifications=True) as pilot:
            person = Person(app, pilot, factory)
            if waits:
                await person.until(lambda: session.is_open, "the model")
                await person.misses("loading the model")
            try:
                yield person
            finally:
                await session.close()
                app.exit()  # as a person leaves it: what it does at this moment ends before its widgets go
                await asyncio.wait([app._task], timeout=PATIENCE_S)

    return sit_down
