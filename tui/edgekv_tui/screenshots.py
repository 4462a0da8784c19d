"""Pictures of the real program for the guide: `python -m edgekv_tui.screenshots docs/guide/pictures`.

Drives the chat by keys, with a real model (the bundled one, or what EDGEKV_MODEL says) over a data directory that
is removed again, and writes what the screen shows as SVG. Knows scenes; nothing of how screens are made.
"""

from __future__ import annotations

import asyncio
import re
import sys
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

from edgekv.config import load_config
from edgekv_tui.app import ChatApp
from edgekv_tui.session import Session
from edgekv_tui.widgets.prompt import Prompt

if TYPE_CHECKING:
    from collections.abc import Callable

    from textual.pilot import Pilot

SIZE = (150, 36)
PATIENCE_S = 300.0
LIMITS = {"device_budget": "12MiB", "host_budget": "24MiB", "max_tokens": 160, "seed": 7, "temperature": 0.3}
QUESTIONS = ("What is a lighthouse for? Answer in two sentences.", "List three famous rivers of Europe.")
TOLD = "The keeper of light number {} wrote down the wind, the ships and the weather of the day. "
FONT_FACES = re.compile(r"@font-face\s*{[^}]*}\s*")  # they would be fetched from elsewhere


async def make(folder: Path) -> None:
    """Write all pictures into `folder`."""
    with tempfile.TemporaryDirectory() as data_dir:
        config = load_config({**LIMITS, "data_dir": data_dir, "encryption": "off"})
        session = Session(config)
        app = ChatApp(session)
        async with app.run_test(size=SIZE) as pilot:
            await _until(lambda: session.is_open)
            await _say(pilot, app, "Remember this logbook: " + "".join(TOLD.format(n) for n in range(60)))
            await pilot.press("ctrl+n")
            for question in QUESTIONS:
                await _say(pilot, app, question)
            _save(app, folder / "conversation.svg")
            await pilot.press("f1")
            await pilot.pause(0.2)
            _save(app, folder / "keys.svg")
            await pilot.press("escape", "ctrl+l", "down", "enter")
            await pilot.pause(1.0)
            await _say(pilot, app, "Who wrote the logbook?")
            _save(app, folder / "memory.svg")
        await session.close()


async def _say(pilot: Pilot[int], app: ChatApp, text: str) -> None:
    chat = app.chat_screen.chat
    before = chat.num_answers
    prompt = app.chat_screen.query_one(Prompt)
    prompt.focus()
    prompt.insert(text)
    await pilot.press("enter")
    await _until(lambda: chat.num_answers > before)
    await pilot.pause(0.7)


async def _until(is_done: Callable[[], bool]) -> None:
    async with asyncio.timeout(PATIENCE_S):
        while not is_done():  # noqa: ASYNC110  screens tell nobody that they are done
            await asyncio.sleep(0.05)


def _save(app: ChatApp, path: Path) -> None:
    svg = app.export_screenshot(title="edgekv chat", simplify=True)
    path.write_text(FONT_FACES.sub("", svg), "utf-8")


if __name__ == "__main__":
    target = Path(sys.argv[1])
    target.mkdir(parents=True, exist_ok=True)
    asyncio.run(make(target))
