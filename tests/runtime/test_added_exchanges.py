"""Exchanges that were made elsewhere: rendered as they would have been here, quickly, and all of them or none."""

import pytest
from fakes import FakeFactory, FakeFront, FakeTemplate, FakeTurnText

from edgekv import StoreError
from edgekv.conversation.render import exchange_turns


class Counting(FakeTemplate):
    """Counts the messages it is shown."""

    num_seen = 0

    def render_turn(self, history, new_messages, *, answer_ended=True):
        self.num_seen += len(history)
        return super().render_turn(history, new_messages, answer_ended=answer_ended)


class Rounds(FakeTemplate):
    """Numbers the turns, as ChatGLM's does."""

    def render_turn(self, history, new_messages, *, answer_ended=True):
        return FakeTurnText(
            True, [(f"[Round {len(history) // 2}]", True), (new_messages[0]["content"], False)]
        )


def front_with(template):
    front = FakeFront()
    front.template = template
    return front


SAID = [(f"question {n}", f"answer {n}" if n % 7 else "[thought]answer") for n in range(40)]


@pytest.mark.parametrize("template", [FakeTemplate(), FakeTemplate(drops_thinking=True), Rounds()])
@pytest.mark.parametrize("num_before", [0, 3, 9])
def test_many_are_rendered_as_one_after_the_other(template, num_before):
    """Guards the few turns that stand for a long history: templates that look farther back are noticed."""
    front = front_with(template)
    turns = []
    for number, exchange in enumerate(SAID):
        turns += exchange_turns(front, turns, "be brief", [exchange], number)
    assert (
        exchange_turns(front, turns[:num_before], "be brief", SAID[num_before:], num_before)
        == (turns[num_before:])
    )


def test_a_long_import_does_not_render_its_history_again_and_again():
    """Guards 20,000 exchanges: each rendered everything before it, which took hours."""
    template = Counting()
    turns = exchange_turns(front_with(template), [], None, [("a", "b")] * 1000, 0)
    assert len(turns) == 1000
    assert template.num_seen < 20 * 1000


def test_a_full_disk_takes_all_of_them_or_none(open_runtime, monkeypatch):
    """Guards against half an import: the exchanges stayed in the tree, and the next message went on from them."""
    from edgekv_storage import DiskFull, Transcripts

    runtime = open_runtime()
    chat = runtime.conversation("a")
    chat.send("one")
    before = chat.turns()

    def full(*_args, **_kwargs):
        raise DiskFull("the drive is full")

    with monkeypatch.context() as patch:
        patch.setattr(Transcripts, "append_turns", full)
        with pytest.raises(StoreError, match="drive is full"):
            chat.add_exchanges([("x", "y"), ("z", "w")])
    assert (chat.turns(), chat.history()) == (before, before)
    chat.add_exchanges([("two", "b")])
    chat.send("three")
    runtime.close()
    again = open_runtime(FakeFactory()).conversation("a")
    assert [turn.user for turn in again.history()] == ["one", "two", "three"]
    assert len(again.branches()) == 1
