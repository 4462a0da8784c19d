"""Looks: both sizes, in a dark, a light and the terminal's own theme. `pytest --new-looks` accepts changes."""

from pathlib import Path

import pytest
from screen_looks import look_of, worst_contrast

FOLDER = Path(__file__).parent / "looks"
THEMES = ("textual-dark", "textual-light", "ansi-dark")
READABLE = 3.0
ANSWER = (
    "# Three rivers\n\nThey are *long*, and **old**:\n\n1. Danube\n2. [Rhine](https://example.org)\n\n"
    "```python\nprint('Meuse')  # a comment\n```\n\n> quoted\n\n| a | b |\n|---|---|\n| 1 | `2` |\n"
)


@pytest.fixture
def sees_look(request):
    """Compares a screen in all themes with the file of that name."""

    async def sees_look(person, name, themes=THEMES[:1]):
        shots = {}
        for widget in person.app.screen.query("Prompt, Input"):
            widget.cursor_blink = False
        for theme in themes:
            person.app.theme = theme
            await person.pilot.pause()
            shots[theme] = person.strips()
            if "ansi" not in theme and len(person.app.screen_stack) == 1:
                contrast, text = worst_contrast(shots[theme])
                assert contrast >= READABLE, f"{theme}: {text!r} has a contrast of {contrast:.1f}"
        look, path = look_of(shots), FOLDER / f"{name}.txt"
        if request.config.getoption("--new-looks"):
            path.write_text(look)
        assert look == path.read_text(), (
            f"{name} looks different; if that is meant: pytest --new-looks tests/tui"
        )

    return sees_look


async def test_looks_of_a_small_terminal(sit_down, sees_look):
    """Guards 80 by 24: an answer with all that Markdown has, private chats, and the memory page."""
    async with sit_down("trip", answer=ANSWER, config={"encryption": "off"}) as person:
        await person.talks("Which rivers are there?")
        await sees_look(person, "small_answer", THEMES)
        await person.presses("f4")
        await person.sees("Memory", "device 208", "each step read")
        await sees_look(person, "small_memory")
        await person.presses("escape", "ctrl+t")
        await person.sees("PRIVATE")
        await sees_look(person, "small_private")
        await person.presses("f1")
        await person.sees("Keys")
        await sees_look(person, "small_keys")


async def test_looks_of_a_large_terminal(sit_down, sees_look):
    """Guards 200 by 60: list, conversation and memory side by side, and dialogs over them."""
    async with sit_down("trip", size=(200, 60), answer=ANSWER, config={"encryption": "off"}) as person:
        await person.talks("Which rivers are there?")
        await person.sees("device 208", "each step read", "● trip")
        await sees_look(person, "large_answer", THEMES)
        await person.presses("ctrl+f")
        await person.types("river")
        await person.sees("1 found")
        await sees_look(person, "large_find")
