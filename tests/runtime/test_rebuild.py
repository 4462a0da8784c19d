"""Damaged turns put together again from stored token ids: which can be, what is kept of them, what is told."""

import sqlite3

import pytest
from fakes import FIRST_CHARACTER, FakeFactory, FakeFront

from edgekv import ConversationError, StoreError

ANSWER = "the answer is rather long, so that it fills leaves"


def damage(data_dir, *rows):
    with sqlite3.connect(data_dir / "transcripts.db") as db:
        for row in rows:
            db.execute("UPDATE turns SET content = zeroblob(length(content)) WHERE id = ?", (row,))
    db.close()


@pytest.fixture
def talk(open_runtime):
    """Four turns, one of them another branch of the second; returns the turns by id and the stored paths."""

    def talk_once(*, thinking=False, answer=ANSWER):
        runtime = open_runtime(factory(thinking=thinking, answer=answer))
        chat = runtime.conversation("trip", system="be brief")
        for text in ("where <|to|>?", " and then? ", "where <|to|>?"):
            chat.send(text)
        chat.edit(1, "or elsewhere?")
        chat.switch(2)
        tree = chat._tree
        stored = [list(tree.context_ids(turn.id))[:-1] for turn in tree.turns()]
        runtime.close()
        return tree.turns(), stored

    return talk_once


def factory(*, thinking=False, **options):
    front = FakeFront(drops_thinking=thinking)
    return FakeFactory(front=front, **({"answer": ANSWER} | options))


SETS = [[1], [2], [3], [4], [1, 2], [2, 3], [1, 2, 3, 4]]


# A whole context repeats earlier answers, of which a rebuilt one may lack the end: no two in a row there.
@pytest.mark.parametrize(
    ("rows", "thinking"), [(rows, False) for rows in SETS] + [(rows, True) for rows in SETS[:4]]
)
def test_what_lies_between_intact_turns_is_the_damaged_one(open_runtime, data_dir, talk, rows, thinking):
    """Guards the rebuild of first, middle, last and branched turns, also where each turn is a whole context."""
    answer = "[hm]" + ANSWER if thinking else ANSWER
    turns, stored = talk(thinking=thinking, answer=answer)
    assert any(turn.is_whole for turn in turns) == thinking
    damage(data_dir, *rows)
    runtime = open_runtime(factory(thinking=thinking, stored=stored, answer=answer))
    again = runtime.conversation("trip")._tree.turns()
    for old, new in zip(turns, again, strict=True):
        assert new.is_rebuilt == (old.id + 1 in rows)
        assert (new.user, new.parent, new.is_whole) == (old.user, old.parent, old.is_whole)
        assert old.answer.startswith(new.answer), "nothing is made up"
        assert len(old.answer) - len(new.answer) <= 15
        kept = [*new.prompt_ids, *new.answer_ids]
        assert kept == [*old.prompt_ids, *old.answer_ids][: len(kept)]
        has_child = any(turn.parent == old.id for turn in turns)
        if has_child and not thinking:
            assert (new.answer, new.state) == (old.answer, "complete"), "all of it is known"
        elif new.is_rebuilt:
            assert new.state == ("complete" if new.answer_ended else "stopped")


def test_it_is_said_and_kept_in_a_row_of_its_own(open_runtime, data_dir, talk):
    """Guards the evidence: the damaged row is never written over, and what was rebuilt is rebuilt only once."""
    turns, stored = talk()
    damage(data_dir, 1, 3)
    before = rows_of(data_dir)
    runtime = open_runtime(factory(stored=stored))
    chat = runtime.conversation("trip")
    assert rows_of(data_dir) == before, "looking writes nothing"
    result = chat.send("go on")
    assert result.notices == (
        "turn 0 was damaged and rebuilt from the stored tokens",
        "turn 2 was damaged and rebuilt from the stored tokens; the last up to 15 tokens may be missing",
    )
    told = [turn.user for turn in chat.history()]
    [info] = runtime.conversations()
    assert (info.is_damaged, info.num_turns) == (False, 5)
    runtime.close()
    after = rows_of(data_dir)
    assert {row: after[row] for row in before} == before
    assert len(after) == len(before) + 3
    runtime = open_runtime(factory())  # nothing stored any more: its own row is enough
    chat = runtime.conversation("trip")
    assert [turn.user for turn in chat.history()] == told
    assert [turn.is_rebuilt for turn in chat.history()] == [True, False, True, False]
    assert [turn.user for turn in runtime.conversation("trip", read_only=True).history()] == told
    assert chat.send("and on").notices == ()
    chat.switch(3)
    assert [turn.user for turn in chat.history()] == [turns[0].user, "or elsewhere?"]


@pytest.mark.parametrize(
    ("rows", "stored", "why"),
    [
        ([2], lambda paths: [], "no KV of this conversation is stored any more"),
        ([2], lambda paths: [ids[:96] for ids in paths[:1]], "too few of its tokens are stored"),
        ([3], lambda paths: [[7, *ids[1:]] for ids in paths], "too few of its tokens are stored"),
    ],
    ids=["no KV", "another branch's KV", "KV of other tokens"],
)
def test_what_cannot_be_rebuilt_stays_as_it_is(open_runtime, data_dir, talk, rows, stored, why):
    """Guards honesty: the turn is named with the reason, the rest can be read, nothing is changed."""
    _, paths = talk()
    damage(data_dir, *rows)
    before = rows_of(data_dir)
    runtime = open_runtime(factory(stored=stored(paths)))
    with pytest.raises(StoreError, match=rf"turn {rows[0] - 1} does not match .* cannot be rebuilt: {why}"):
        runtime.conversation("trip")
    read = runtime.conversation("trip", read_only=True)
    assert [turn.state for turn in read._tree.turns()].count("damaged") == 1
    with pytest.raises(ConversationError):
        read.send("x")
    assert runtime.conversations()[0].is_damaged
    assert rows_of(data_dir) == before


def test_a_row_with_a_wrong_parent_is_not_rebuilt_wrongly(open_runtime, data_dir, talk):
    """Guards against two turns taken for one: the parent a damaged row names is not verified."""
    _, stored = talk()
    with sqlite3.connect(data_dir / "transcripts.db") as db:
        db.execute("UPDATE turns SET parent = 1 WHERE id = 3")
    db.close()
    runtime = open_runtime(factory(stored=stored))
    with pytest.raises(StoreError, match="turn 1 does not match"):
        runtime.conversation("trip")


def test_a_turn_that_cannot_be_cut_is_left_alone(open_runtime, data_dir, talk):
    """Guards the proof: ids whose message, rendered again, gives other ids are not believed."""
    turns, stored = talk()
    damage(data_dir, 2)
    at = len(turns[0].prompt_ids) + len(turns[0].answer_ids) + 3  # inside the markup before the message
    strange = [[*ids[:at], ord("Q") + FIRST_CHARACTER, *ids[at + 1 :]] for ids in stored]
    runtime = open_runtime(factory(stored=strange))
    with pytest.raises(StoreError, match="cannot be rebuilt"):
        runtime.conversation("trip")


def rows_of(data_dir):
    with sqlite3.connect(data_dir / "transcripts.db") as db:
        found = dict(db.execute("SELECT id, content FROM turns").fetchall())
    db.close()
    return found
