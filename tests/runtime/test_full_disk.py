"""What the disk refused is kept with the next thing that it takes, or when the Runtime is closed; or it is said."""

import contextlib

import pytest
from fakes import FakeFactory

from edgekv import Cancelled, Notice, StoreError
from edgekv_storage import DiskFull, Transcripts

LONG = "a long story " * 250
"""More than the free pages of a small file hold: a token is four bytes."""


def kept(open_runtime, name="a"):
    """Every turn as a new Runtime finds it."""
    with open_runtime() as runtime:
        chat = runtime.conversation(name)
        return [(turn.user, turn.state, turn.answer) for turn in chat.turns()], said(chat)


def said(chat):
    return [turn.user for turn in chat.history()]


@pytest.fixture
def full_disk(monkeypatch):
    """A context in which the transcripts take nothing."""

    def refuse(*_args, **_kwargs):
        raise DiskFull("the drive is full")

    @contextlib.contextmanager
    def full(*calls):
        with monkeypatch.context() as patch:
            for call in calls or ("append_turns", "update_turn", "set_head"):
                patch.setattr(Transcripts, call, refuse)
            yield

    return full


@contextlib.contextmanager
def no_more_pages(runtime):
    """SQLite's own "disk is full": the file may not grow."""
    db = runtime._library._transcripts._db
    (size,) = db.execute("PRAGMA page_count").fetchone()
    db.execute(f"PRAGMA max_page_count = {size}")
    yield
    db.execute("PRAGMA max_page_count = 1000000")


@pytest.mark.parametrize("then", ["another turn", "only close"])
def test_an_answer_that_did_not_fit_is_kept_later(open_runtime, then):
    """Guards the text of a turn whose message was kept and whose answer was refused: it stayed empty for ever."""
    factory = FakeFactory(answer="hello there")
    runtime = open_runtime(factory)
    chat = runtime.conversation("a")
    chat.send("hello")
    factory.engine.answer = LONG
    factory.engine.hold.clear()
    stream = chat.stream("Tell a long story", max_tokens=4000)
    with no_more_pages(runtime):
        factory.engine.hold.set()
        notices = stream.result().notices
    assert any("this turn is in memory only: the drive is full" in notice for notice in notices)
    expected = [("hello", "complete", "hello there"), ("Tell a long story", "complete", LONG)]
    if then == "another turn":
        factory.engine.answer = "hello there"
        assert chat.send("now free").notices == ()
        expected.append(("now free", "complete", "hello there"))
    runtime.close()
    assert kept(open_runtime) == (expected, [user for user, _, _ in expected])


def test_several_turns_are_kept_when_there_is_room_again(open_runtime, full_disk):
    """Guards the newest form of each: refused as a message, as an answer, or as both, and one that was stopped."""
    factory = FakeFactory()
    runtime = open_runtime(factory)
    chat = runtime.conversation("a")
    with full_disk("update_turn"):
        chat.send("no answer")
    factory.engine.hold.clear()
    stopped = chat.stream("stopped")
    with full_disk():
        stopped.cancel()
        with pytest.raises(Cancelled):
            stopped.result()
        factory.engine.hold.set()
        told = [chat.send("nothing").notices, chat.send("nothing either").notices]
    assert all("this turn is in memory only" in notices[0] for notices in told)
    assert chat.send("free").notices == ()
    runtime.rename("a", "b")
    before = [(turn.user, turn.state, turn.answer) for turn in chat.turns()]
    assert [state for _, state, _ in before] == ["complete", "stopped", "complete", "complete", "complete"]
    runtime.close()
    assert kept(open_runtime, "b") == (before, [user for user, _, _ in before])


@pytest.mark.parametrize("goes_on", [True, False])
def test_branches_made_on_a_full_disk_are_kept(open_runtime, full_disk, goes_on):
    """Guards a turn that was answered again, and edited, meanwhile: all are there, and the head is the last."""
    runtime = open_runtime()
    chat = runtime.conversation("a")
    chat.send("one")
    with full_disk("update_turn"):
        chat.send("two")
    with full_disk():
        chat.regenerate()
        chat.edit(0, "one again")
        chat.send("behind it")
    if goes_on:
        assert chat.send("free").notices == ()
    before = [(turn.user, turn.state, turn.answer) for turn in chat.turns()]
    branches, history = len(chat.branches()), said(chat)
    runtime.close()
    turns, head = kept(open_runtime)
    assert (sorted(turns), head) == (sorted(before), history)
    assert len(open_runtime().conversation("a").branches()) == branches == 3


def test_another_branch_chosen_after_a_refusal_stays_chosen(open_runtime, full_disk):
    """Guards the head: what is kept late must not take it back, and a branch without a row is no head."""
    runtime = open_runtime()
    chat = runtime.conversation("a")
    chat.send("one")
    with full_disk():
        chat.edit(0, "other")
        with pytest.raises(StoreError, match="drive is full"):
            chat.switch(chat.turns()[1].id)
    chat.switch(chat.turns()[0].id)
    runtime.close()
    assert kept(open_runtime)[1] == ["one"]


def test_what_is_refused_alone_stops_nothing_else_and_is_told(open_runtime, full_disk):
    """Guards new turns against an old row that cannot be written, and says what is still missing."""
    runtime = open_runtime()
    chat = runtime.conversation("a")
    with full_disk("update_turn"):
        chat.send("one")
    with full_disk("update_turn"):
        events = list(chat.stream("two"))
    notices = [event.message for event in events if isinstance(event, Notice)]
    assert notices == ["earlier turns are in memory only: the drive is full"]
    assert any("this turn is in memory only" in notice for notice in events[-1].result.notices)
    runtime.close()
    assert [state for _, state, _ in kept(open_runtime)[0]] == ["complete", "complete"]


def test_a_last_refusal_is_told_and_all_is_closed(open_runtime, full_disk):
    """Guards leaving on a full drive: what is lost is said, once, and the directory is free for the next."""
    runtime = open_runtime()
    runtime.conversation("a").send("one")
    with full_disk():
        runtime.conversation("a").send("two")
        runtime.conversation("b").send("x")
        with pytest.raises(StoreError, match=r"2 turn\(s\) of 'a', 'b' were in memory only .* drive is full"):
            runtime.close()
        runtime.close()
    assert open_runtime().degraded is None


def test_an_export_holds_what_was_refused_before(open_runtime, full_disk):
    """Guards a file that is made when there is room again: it is read from the disk."""
    runtime = open_runtime()
    with full_disk("update_turn"):
        runtime.conversation("a").send("one")
    assert "hello there" in runtime.export_conversation("a")[1]


def test_what_was_refused_of_a_forgotten_conversation_is_not_kept(open_runtime, full_disk):
    """Guards forgetting: nothing is written for it later, and closing has nothing to say."""
    runtime = open_runtime()
    with full_disk("update_turn"):
        runtime.conversation("a").send("one")
    runtime.forget("a")
    runtime.close()
    assert open_runtime().conversations() == []


def test_a_conversation_that_cannot_be_forgotten_loses_nothing(open_runtime, full_disk, monkeypatch):
    """Guards a forget that is refused: what was in memory only went all the same, and closing was silent."""
    runtime = open_runtime()
    runtime.conversation("a").send("one")
    with full_disk(), monkeypatch.context() as patch:
        assert any("in memory only" in notice for notice in runtime.conversation("a").send("two").notices)

        def refuse(_keys, _sequence_id):
            raise DiskFull("the drive is full")

        patch.setattr(type(runtime._library.keys), "destroy", refuse)
        with pytest.raises(StoreError, match="drive is full"):
            runtime.forget("a")
    assert [turn.user for turn in runtime.conversation("a").history()] == ["one", "two"]
    runtime.close()
    assert [turn.user for turn in open_runtime().conversation("a").history()] == ["one", "two"]


def test_refused_exchanges_are_not_kept_later(open_runtime, full_disk):
    """Guards all or none: what add_exchanges took back must not come with the next turn."""
    runtime = open_runtime()
    chat = runtime.conversation("a")
    with full_disk("update_turn"):
        chat.send("one")
    with full_disk(), pytest.raises(StoreError):
        chat.add_exchanges([("x", "y")])
    chat.add_exchanges([("two", "b")])
    runtime.close()
    expected = [("one", "complete", "hello there"), ("two", "complete", "b")]
    assert kept(open_runtime) == (expected, ["one", "two"])


def committed(open_runtime, name):
    """What a program that is killed now would leave: another process reads it while this one is still open."""
    reader = open_runtime()
    assert reader.degraded is not None
    turns = reader.conversation(name, read_only=True).turns()
    reader.close()
    return [(turn.user, turn.state, turn.answer) for turn in turns]


def test_a_turn_of_another_conversation_keeps_what_was_refused(open_runtime, full_disk):
    """Guards a turn whose conversation did not speak again: there had long been room, every later turn elsewhere
    was kept, and a kill lost it."""
    runtime = open_runtime()
    a, b, c = (runtime.conversation(name) for name in "abc")
    with full_disk():
        for chat in (a, c):
            assert any("in memory only" in notice for notice in chat.send("when it was full").notices)
    assert [committed(open_runtime, name) for name in "ac"] == [[], []]
    assert b.send("there is room again").notices == ()
    expected = [("when it was full", "complete", "hello there")]
    assert [committed(open_runtime, name) for name in "ac"] == [expected, expected]
    with full_disk("update_turn"):
        a.send("again")
    assert [state for _, state, _ in committed(open_runtime, "a")] == ["complete", "pending"]
    b.add_exchanges([("made", "elsewhere")])
    assert [state for _, state, _ in committed(open_runtime, "a")] == ["complete", "complete"]


def test_what_another_conversation_is_refused_for_ever_is_told_there_only(open_runtime, monkeypatch):
    """Guards every other conversation against one that cannot be written: their turns are kept, what they owe too,
    and nothing is said that is not theirs."""
    runtime = open_runtime()
    chats = {name: runtime.conversation(name) for name in "abc"}
    stubborn = runtime._library.require("a").id
    inner, refusing = (
        Transcripts.append_turns,
        {row.id for row in runtime._library._transcripts.conversations()},
    )

    def append_turns(self, conversation_id, *args, **kwargs):
        if conversation_id in refusing:
            raise DiskFull("the drive is full")
        return inner(self, conversation_id, *args, **kwargs)

    monkeypatch.setattr(Transcripts, "append_turns", append_turns)
    chats["a"].send("one")
    chats["c"].send("two")
    refusing -= refusing - {stubborn}
    assert chats["b"].send("three").notices == ()
    assert [[user for user, _, _ in committed(open_runtime, name)] for name in "abc"] == [
        [],
        ["three"],
        ["two"],
    ]
    assert any("drive is full" in notice for notice in chats["a"].send("four").notices)
    refusing.clear()
    assert chats["b"].send("five").notices == ()
    assert [user for user, _, _ in committed(open_runtime, "a")] == ["one", "four"]


def test_what_is_being_forgotten_is_not_settled(open_runtime, full_disk):
    """Guards forgetting against a turn that is kept elsewhere at that moment: it had the journal in its hand
    already, and wrote for a conversation whose key was gone."""
    runtime = open_runtime()
    with full_disk():
        runtime.conversation("a").send("one")
    (journal,) = runtime._library._owing
    with full_disk("delete_sequence"), pytest.raises(StoreError):
        runtime.forget("a")
    assert (journal.settle(), journal.num_owed, runtime._library._owing) == (None, 0, set())
    runtime.forget("a")
    assert runtime.conversation("b").send("two").notices == ()
    assert runtime.conversations()[0].name == "b"
