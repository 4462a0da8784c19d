"""The Runtime behind the chat, without a screen."""

import asyncio
import threading
from types import SimpleNamespace

import pytest
from fakes import FakeFactory
from patience import PATIENCE_S

from edgekv import Closed, Config, Runtime
from edgekv_tui.session import Session


async def test_closing_twice_waits_for_the_first(data_dir):
    """Guards leaving while the model is about to be loaded again: the process ended over half-written KV."""
    may_close, closed = threading.Event(), []

    def open_runtime(**_options):
        return SimpleNamespace(
            stats=lambda: SimpleNamespace(model="fake"),
            close=lambda: closed.append(may_close.wait(PATIENCE_S)),
        )

    session = Session(Config(data_dir=data_dir), opener=open_runtime)
    await session.open(str)
    closings = [asyncio.create_task(session.close()) for _ in range(2)]
    await asyncio.wait(closings, timeout=0.05)
    assert not any(closing.done() for closing in closings)
    may_close.set()
    await asyncio.gather(*closings)
    assert closed == [True]


async def test_one_model_is_loaded_at_a_time(data_dir):
    """Guards "Use another model" while one is loading: both were, the later found the data directory in use by this
    very program and kept nothing, and whichever came last was the one to talk to.
    """
    begun, may_load, opened = threading.Event(), threading.Event(), []

    def open_runtime(**options):
        opened.append(Runtime(engine_factory=FakeFactory(), **options))
        begun.set()
        may_load.wait(PATIENCE_S)
        return opened[-1]

    session = Session(Config(data_dir=data_dir), opener=open_runtime)
    openings = [asyncio.create_task(session.open(str))]
    await asyncio.to_thread(begun.wait, PATIENCE_S)
    await session.close()
    openings += [asyncio.create_task(session.open(str)) for _ in range(2)]
    await asyncio.wait(openings, timeout=0.05)
    assert len(opened) == 1
    may_load.set()
    assert await asyncio.gather(*openings) == [False, False, True]
    assert (len(opened), session.runtime, session.degraded) == (2, opened[1], None)
    with pytest.raises(Closed):
        opened[0].names()
    await session.close()


async def test_nobody_waits_for_a_model_that_is_not_wanted(data_dir):
    """Guards leaving while a model loads, and a load whose asker went away: both let go of what comes later."""
    begun, may_load, opened = threading.Event(), threading.Event(), []

    def open_runtime(**options):
        opened.append(Runtime(engine_factory=FakeFactory(), **options))
        begun.set()
        may_load.wait(PATIENCE_S)
        return opened[-1]

    session = Session(Config(data_dir=data_dir), opener=open_runtime)
    opening = asyncio.create_task(session.open(str))
    await asyncio.to_thread(begun.wait, PATIENCE_S)
    opening.cancel()
    await session.close()
    assert not may_load.is_set()
    may_load.set()
    assert await session.open(str)
    assert (len(opened), session.runtime, session.degraded) == (2, opened[1], None)
    await session.close()


async def test_an_unwanted_model_asks_for_no_passphrase(data_dir):
    """Guards against questions of a model that was given up, and the failure of one that nobody waits for."""
    begun, may_ask, asked = threading.Event(), threading.Event(), []

    def open_runtime(*, passphrase, **_options):
        begun.set()
        may_ask.wait(PATIENCE_S)
        passphrase("Passphrase")

    session = Session(Config(data_dir=data_dir), opener=open_runtime)
    opening = asyncio.create_task(session.open(asked.append))
    await asyncio.to_thread(begun.wait, PATIENCE_S)
    await session.close()
    may_ask.set()
    assert (await opening, asked) == (False, [])
