"""Logs of llm 0.36: threads of shared messages, in tables made by the same statements as llm's own."""

import sqlite3
from contextlib import closing

import pytest

from edgekv import ConversationError, ForeignChat, read_foreign
from edgekv.conversation import llmlog

TABLES = """
CREATE TABLE "conversations" ("id" TEXT PRIMARY KEY, "name" TEXT, "model" TEXT);
CREATE TABLE "responses" ("id" TEXT PRIMARY KEY, "model" TEXT, "prompt" TEXT, "system" TEXT, "response" TEXT,
   "conversation_id" TEXT REFERENCES "conversations"("id"));
CREATE TABLE "fragments" ("id" INTEGER PRIMARY KEY, "hash" TEXT, "content" TEXT, "datetime_utc" TEXT,
   "source" TEXT);
CREATE TABLE "messages" ("hash" TEXT PRIMARY KEY, "parent_hash" TEXT REFERENCES "messages"("hash"),
   "role" TEXT, "provider_metadata" TEXT);
CREATE TABLE "parts" ("id" INTEGER PRIMARY KEY, "message_hash" TEXT REFERENCES "messages"("hash"),
   "position" INTEGER, "type" TEXT, "tool_name" TEXT, "text" TEXT, "payload" TEXT);
CREATE UNIQUE INDEX "idx_parts_message_hash_position" ON "parts" ("message_hash", "position");
CREATE TABLE "threads" ("id" TEXT PRIMARY KEY, "name" TEXT,
   "tip_message_hash" TEXT REFERENCES "messages"("hash"), "forked_from" TEXT REFERENCES "threads"("id"),
   "datetime_utc" TEXT);
"""
CALL = '{"name": "look", "arguments": {"q": 1}, "tool_call_id": "c1"}'
RESULT = '{"name": "look", "output": "found", "tool_call_id": "c1"}'
QUOTE = '{"text_ref": [{"literal": "of this: "}, {"fragment": 1}, {"literal": " What?"}]}'
MESSAGES = [
    ("s", None, "system", [("text", "be brief", None)]),
    ("u", "s", "user", [("text", "first", None)]),
    ("a", "u", "assistant", [("reasoning", "hm", None), ("tool_call", None, CALL)]),
    ("t", "a", "tool", [("tool_result", None, RESULT)]),
    ("b", "t", "assistant", [("text", "one", None)]),
    ("v", "b", "user", [("text", "second", None), ("attachment", None, '{"attachment": {"id": "x"}}')]),
    ("c", "v", "assistant", [("text", "two", None)]),
    ("d", "u", "assistant", [("text", "uno", None)]),
    ("w", None, "user", [("text", None, QUOTE)]),
]
THREADS = [("1", "Ships", "c", None), ("2", "Fork", "d", "1"), ("3", None, "w", None)]
SHIPS = ForeignChat("Ships", (("first", "one"), ("second", "two")), "be brief", num_left_out=4)
FORK = ForeignChat("Fork", (("first", "uno"),), "be brief")
QUOTED = ForeignChat("untitled", (("of this: the file. What?", ""),))


@pytest.fixture
def log(tmp_path):
    with closing(sqlite3.connect(tmp_path / "logs.db")) as db:
        db.executescript(TABLES)
        db.execute("INSERT INTO fragments VALUES (1, 'h', 'the file.', NULL, NULL)")
        for name, parent, role, parts in MESSAGES:
            db.execute("INSERT INTO messages VALUES (?, ?, ?, NULL)", (name, parent, role))
            for at, (kind, text, payload) in enumerate(parts):
                db.execute(
                    "INSERT INTO parts (message_hash, position, type, text, payload) VALUES (?, ?, ?, ?, ?)",
                    (name, at, kind, text, payload),
                )
        db.executemany("INSERT INTO threads VALUES (?, ?, ?, ?, NULL)", THREADS)
        db.commit()
    return tmp_path / "logs.db"


def change(path, statements):
    with closing(sqlite3.connect(path)) as db:
        db.executescript(statements)


def test_threads_are_read(log):
    """Guards current logs: shared messages, forks, quoted files; what is no text is counted; nothing is written."""
    before = log.read_bytes()
    assert read_foreign(log) == [SHIPS, FORK, QUOTED]
    assert "without 4 parts" in SHIPS.notice
    assert FORK.notice is None
    assert log.read_bytes() == before


def test_old_conversations_come_too_and_none_comes_twice(log):
    """Guards a log that was updated: old rows stay in their tables, and go on in a thread of the same id."""
    rows = "('r1', 'm', 'q', NULL, 'a', '1'), ('r2', 'm', 'long ago', 'S', 'yes', '0')"
    change(log, f"INSERT INTO conversations VALUES ('1', 'Ships', 'm'), ('0', 'Old', 'm');"
                f"INSERT INTO responses VALUES {rows};")  # fmt: skip
    assert read_foreign(log) == [ForeignChat("Old", (("long ago", "yes"),), "S"), SHIPS, FORK, QUOTED]


HOSTILE = {
    "a loop": ("UPDATE messages SET parent_hash = 'c' WHERE hash = 's'", None),
    "no such tip": ("UPDATE threads SET tip_message_hash = 'none'", "no conversation"),
    "a payload that is none": ("UPDATE parts SET payload = '[' WHERE message_hash = 'w'", "can be read"),
    "a view": ("DROP TABLE parts; DROP TABLE responses; CREATE VIEW parts AS SELECT 1", "no tables"),
}  # fmt: skip


@pytest.mark.parametrize(("statements", "refusal"), HOSTILE.values(), ids=HOSTILE.keys())
def test_hostile_threads_end_in_one_line(log, statements, refusal):
    """Guards against loops and tracebacks from a database that somebody made."""
    change(log, statements)
    if refusal is None:
        assert read_foreign(log)[0].said == SHIPS.said
    else:
        with pytest.raises(ConversationError, match=refusal):
            read_foreign(log)


def test_a_small_file_never_becomes_a_large_one(log, monkeypatch):
    """Guards memory: threads share messages, so a thousand forks of one long message cost a file nothing."""
    monkeypatch.setattr(llmlog, "LARGEST_LOG_TEXT", 20_000)
    change(log, f"UPDATE parts SET text = '{'x' * 500}' WHERE message_hash = 'd'")
    assert len(read_foreign(log)) == 3
    with closing(sqlite3.connect(log)) as db:
        db.executemany("INSERT INTO threads VALUES (?, 'F', 'd', '2', NULL)", [(f"f{n}",) for n in range(50)])
        db.commit()
    with pytest.raises(ConversationError, match="split it first"):
        read_foreign(log)


def test_a_message_without_answer_waits_for_one(log, open_runtime):
    """Guards the last message of an import: it can be answered here, it does not count as answered with nothing."""
    runtime = open_runtime()
    name = runtime.import_foreign(QUOTED)
    runtime.close()
    chat = open_runtime().conversation(name)
    assert [turn.state for turn in chat.history()] == ["pending"]
    assert chat.stream_regenerate().result().text == "hello there"
    assert [turn.state for turn in chat.history()] == ["complete"]
