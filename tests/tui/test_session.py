"""The Runtime behind the chat, without a screen."""

import asyncio
import threading
from types import SimpleNamespace

from patience import PATIENCE_S

from edgekv import Config
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
