"""Conversations as files: what goes out comes in again, and what makes no sense is told by its line."""

import asyncio
import dataclasses
import errno
import json
import sqlite3

import pytest
from fakes import FakeFactory

from edgekv import AsyncRuntime, ConversationError, StoreError
from edgekv.conversation.exchange import export_markdown
from edgekv.conversation.linefile import write_lines
from edgekv.conversation.turns import decode_turn, encode_turn


def talk(runtime):
    chat = runtime.conversation("trip", system="be brief")
    chat.send("one")
    chat.send("two \u00e9\U0001f600\nlines")
    chat.edit(1, "two again")
    return chat


def test_a_conversation_comes_back_whole(open_runtime):
    """Guards branches, the head, the system prompt and the token ids: the copy goes on where the first did."""
    runtime = open_runtime()
    chat = talk(runtime)
    lines = runtime.export_conversation("trip")
    assert runtime.import_conversation(lines, "copy") == "copy"
    with pytest.raises(StoreError, match="trip"):
        runtime.import_conversation(lines)
    copy = runtime.conversation("copy")
    assert copy.history() == chat.history()
    assert copy.branches() == chat.branches()
    assert (copy.system, copy.sequence_id != chat.sequence_id) == ("be brief", True)
    assert copy.send("three").text == "hello there"
    again = runtime.export_conversation("copy")[1 : len(lines)]
    assert again == lines[1:]


def test_lines_that_make_no_sense_leave_nothing(open_runtime):
    """Guards import against files of others: the line is named, no half conversation stays."""
    runtime = open_runtime()
    talk(runtime)
    head, *turns = runtime.export_conversation("trip")

    def with_turn(**changes):
        return [head, json.dumps(json.loads(turns[0]) | changes), *turns[1:]]

    cases = [
        ([], "nothing"),
        (["{}"], "line 1"),
        (["not json"], "line 1"),
        ([head.replace('"edgekv_conversation":1', '"edgekv_conversation":9'), *turns], "format 9"),
        ([head.replace('"head":2', '"head":7'), *turns], "turn 7"),
        ([head, *turns[1:]], "line 2: a turn comes once"),
        ([head, *turns, turns[0]], "line 5: a turn comes once"),
        ([head, turns[0], "", "{"], "line 4"),
        (with_turn(prompt_ids=[1 << 40]), "line 2"),
        (with_turn(answer_ids=[-1]), "below 0"),
        (with_turn(state="damaged"), "cannot be read back"),
        (with_turn(user=7), "line 2"),
        (with_turn(surprise=1), "line 2"),
        ([head, "[" * 100_000], "line 2"),
    ]
    for lines, message in cases:
        with pytest.raises(ConversationError, match=message):
            runtime.import_conversation(lines, "new")
    with pytest.raises(ConversationError, match="cannot be a conversation's name"):
        runtime.import_conversation([head, *turns], " x")
    assert [info.name for info in runtime.conversations()] == ["trip"]


def test_the_good_turns_of_a_damaged_conversation_can_be_read(open_runtime, data_dir):
    """Guards what is left after a flipped row: read only it opens, is exported, and the damage is marked."""
    runtime = open_runtime()
    talk(runtime)
    runtime.close()
    with sqlite3.connect(data_dir / "transcripts.db") as db:
        db.execute("UPDATE turns SET content = x'00' WHERE id = 1")
    db.close()
    runtime = open_runtime()
    with pytest.raises(StoreError, match="edgekv export trip"):
        runtime.conversation("trip")
    read = runtime.conversation("trip", read_only=True)
    assert [(turn.state, turn.user) for turn in read.history()][1] == ("complete", "two again")
    assert read.history()[0].state == "damaged"
    with pytest.raises(ConversationError):
        read.send("x")
    states = [json.loads(line)["state"] for line in runtime.export_conversation("trip")[1:]]
    assert states == ["damaged", "complete", "complete"]


def test_a_conversation_without_its_record_is_listed_by_number(open_runtime, data_dir):
    """Guards a flipped conversation row: the others are listed, this one by number; read, or forgotten."""
    runtime = open_runtime()
    talk(runtime)
    runtime.conversation("other").send("x")
    runtime.close()
    with sqlite3.connect(data_dir / "transcripts.db") as db:
        db.execute("UPDATE conversations SET head = 1 WHERE id = 1")
    db.close()
    runtime = open_runtime()
    infos = {info.name: info.is_damaged for info in runtime.conversations()}
    assert infos == {"#1": True, "other": False}
    assert [turn.user for turn in runtime.conversation("#1", read_only=True).history()] == [
        "one",
        "two again",
    ]
    with pytest.raises(ConversationError, match="unknown"):
        runtime.conversation("#1")
    messages = [e.message for e in runtime.conversation("trip").stream("hi") if hasattr(e, "message")]
    assert any("record is damaged" in message for message in messages)
    runtime.forget("#1")
    assert {info.name for info in runtime.conversations()} == {"other", "trip"}


def test_markdown_is_for_reading(open_runtime):
    """Guards `edgekv export --markdown`: the current branch in order."""
    runtime = open_runtime()
    talk(runtime)
    text = "\n".join(export_markdown(runtime._library, "trip"))
    assert text.index("# trip") < text.index("one") < text.index("hello there") < text.index("two again")
    assert "lines" not in text


def test_asyncio_writes_and_reads_files(data_dir, tmp_path):
    """Guards the slow paths under asyncio: private files, nothing overwritten, the same conversation back."""
    path = tmp_path / "trip.jsonl"

    async def scenario():
        async with AsyncRuntime(engine_factory=FakeFactory(), data_dir=data_dir) as runtime:
            chat = await runtime.conversation("trip")
            await chat.send("one")
            await runtime.export_conversation("trip", path)
            with pytest.raises(ConversationError, match="new file"):
                await runtime.export_conversation("trip", path)
            assert await runtime.import_conversation(path, "copy") == "copy"
            with pytest.raises(ConversationError, match="cannot read"):
                await runtime.import_conversation(tmp_path / "nowhere")
            return (await runtime.conversation("copy")).history() == chat.history()

    assert asyncio.run(scenario())
    assert path.stat().st_mode & 0o777 == 0o600


def test_a_full_drive_leaves_no_half_export(tmp_path):
    """Guards secrets: half a conversation, not encrypted, stayed behind, and was in the way of the next try."""

    def lines():
        yield "the beginning"
        raise OSError(errno.ENOSPC, "No space left on device")

    path = tmp_path / "export.jsonl"
    with pytest.raises(ConversationError, match="No space left on device"):
        asyncio.run(write_lines(path, lines()))
    assert not path.exists()
    asyncio.run(write_lines(path, ["whole"]))
    with pytest.raises(ConversationError, match="choose a new file"):
        asyncio.run(write_lines(path, lines()))
    assert path.read_text() == "whole\n"


def test_of_an_imported_answer_nothing_is_invented(open_runtime):
    """Guards answers of other programs: they were kept as exact, and as ended by the model. What an earlier version
    wrote so, to the transcripts or to a file, is read for what it is.
    """
    runtime = open_runtime()
    runtime.conversation("trip").add_exchanges([("one", "made elsewhere")])
    runtime.conversation("trip").send("two")

    def facts(turn):
        return turn.is_imported, turn.exactness, turn.finish_reason

    expected = [(True, None, None), (False, "exact", "stop")]
    assert [facts(turn) for turn in runtime.conversation("trip").history()] == expected
    lines = runtime.export_conversation("trip")
    line = json.loads(lines[1])
    assert ("exactness" in line, line["finish_reason"], json.loads(lines[2])["exactness"]) == (
        False,
        None,
        "exact",
    )
    earlier = [lines[0], json.dumps(line | {"exactness": "exact", "finish_reason": "stop"}), lines[2]]
    runtime.import_conversation(earlier, "from a file")
    stored = dataclasses.replace(
        runtime.conversation("trip").history()[0], exactness="exact", finish_reason="stop"
    )
    assert facts(decode_turn(encode_turn(stored), turn_id=0, parent=None)) == expected[0]
    runtime.close()
    runtime = open_runtime()
    for name in ("trip", "from a file"):
        assert [facts(turn) for turn in runtime.conversation(name).history()] == expected


def test_a_list_read_in_the_middle_of_a_message_tells_of_no_damage(open_runtime, monkeypatch):
    """Guards the list while somebody talks: a turn that came between two looks at a conversation was damage."""
    from edgekv_storage import Transcripts

    runtime = open_runtime()
    chat = talk(runtime)
    read, said = Transcripts.readable_turns, iter(["three", "four"])

    def slow(transcripts, conversation_id):
        for text in said:
            chat.send(text)
            break
        return read(transcripts, conversation_id)

    monkeypatch.setattr(Transcripts, "readable_turns", slow)
    assert [(info.num_turns, info.is_damaged) for info in runtime.conversations()] == [(5, False)]
