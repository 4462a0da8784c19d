"""One answer on its way, without a screen."""

from edgekv import TextDelta
from edgekv_tui.answering import Answering


class FakeStream:
    """One word, and more to come."""

    def __init__(self):
        self.is_cancelled = False
        self.events = [TextDelta("word ", 1)]

    def notify(self, tell):
        tell()

    def remaining_s(self):
        return None

    def poll(self):
        return self.events.pop() if self.events else None

    def cancel(self):
        self.is_cancelled = True


async def test_an_answer_that_cannot_be_drawn_is_stopped():
    """Guards an error while drawing: the answer went on unseen, Esc did nothing, the next message was refused."""
    stream, answering = FakeStream(), Answering("hi", turn=0)

    async def fail():
        raise ValueError("no room")

    def begin():
        answering.on_change = fail
        return stream

    await answering.run(begin)
    assert "ValueError: no room" in str(answering.error)
    assert stream.is_cancelled
