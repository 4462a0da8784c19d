"""What goes wrong around a chat: it says what happened, and nothing is lost."""

import random

from fakes import FakeFactory

from edgekv import Runtime, StoreError
from edgekv.conversation.kept import kept_conversations
from edgekv.conversation.transcript import TranscriptJournal

SCRAPS = (
    "# h\n", "- a\n", "  - b\n", "1. x\n", "| a | b |\n", "|---|---|\n", "| 1 | 2 |\n", "|", "```", "```python\n",
    "\n", "\n\n", "*", "**", "_", "`", "text ", "> q\n", "[l](", "http://x)", "<b>", "<!-- ", "![i](x)", "---\n",
    "    code\n", "\t", "&amp;", "\\", "é", "\U0001f469\u200d\U0001f467", "~~~\n", "[^1]", "===\n", "[a]: b\n",
    "\x01", "[bold]", "[@click=app.quit]x[/]",
)  # fmt: skip


async def test_a_second_instance_says_so_and_keeps_nothing(sit_down, data_dir):
    """Guards two chats on one data directory: the second reads what is kept, answers, and keeps nothing."""
    with Runtime(engine_factory=FakeFactory(), data_dir=data_dir) as first:
        first.conversation("a").send("one")
        async with sit_down("a") as person:
            await person.sees("one", "nothing is kept on disk")
            await person.talks("two")
            await person.sees("two", "hello there", "nothing is kept on disk")
            await person.presses("ctrl+n")
            await person.misses("two")
            await person.talks("three")
            await person.sees("three", "hello there")
            await person.does("forget")
            await person.sees("What was kept of it earlier stays")
            await person.presses("y")
            await person.sees("forgotten: three")
        assert [turn.user for turn in first.conversation("a").history()] == ["one"]
    assert [info.name for info in kept_conversations(data_dir)] == ["a"]


async def test_a_full_disk_is_told_and_the_chat_goes_on(sit_down, monkeypatch):
    """Guards against an answer that ends with the disk: the turn is in memory, and one line says so."""

    def refuse(_journal, _path):
        raise StoreError("the drive is full: free some space")

    async with sit_down("a") as person:
        with monkeypatch.context() as patch:
            patch.setattr(TranscriptJournal, "save", refuse)
            await person.talks("one")
            await person.sees(
                "hello there", "this turn is in memory only: the drive is full: free some space"
            )
        await person.talks("two")
    async with sit_down("a") as person:
        await person.sees("one", "two")


async def test_a_conversation_of_another_model_is_read_only(sit_down):
    """Guards opening what cannot be continued: it is shown, the reason is said, and nothing written is lost."""
    from fakes import FakeFront

    async with sit_down("a") as person:
        await person.talks("one")
    factory = FakeFactory(front=FakeFront(fingerprint=b"\2" * 32, name="other"))
    async with sit_down("a", factory=factory) as person:
        await person.sees("one", "hello there", "belongs to the model fake")
        await person.says("two")
        await person.pilot.pause()
        await person.sees("belongs to the model fake", "█ two")


async def test_broken_markdown_and_a_resized_terminal(sit_down):
    """Guards the screen while an answer streams: Markdown cut anywhere, other widths, a long message."""
    scraps = random.Random(7)
    answer = "".join(scraps.choice(SCRAPS) for _ in range(60)) + "\n```\n\n# the end"
    async with sit_down("a", answer=answer, token_s=0.001, config={"max_tokens": 4000}) as person:
        await person.says("line\n" * 100)
        for size in ((120, 40), (40, 12), (200, 60), (3, 2), (80, 24)):
            await person.pilot.resize_terminal(*size)
            await person.presses("pageup", "pagedown")
        await person.until(lambda: person.app.chat_screen.chat.num_answers == 1)
        await person.sees("the end")
        await person.presses("shift+tab")
        await person.until(lambda: getattr(person.app.focused, "number", None) == 0)
        await person.presses("f")
        await person.until(lambda: person.app.focused._is_whole)
        assert person.history()[0].answer == answer
