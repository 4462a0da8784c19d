"""Conversations of other programs: read as they are exported, refused where they are hostile."""

import json
import sqlite3
import threading
import zipfile
from contextlib import closing

import pytest

from edgekv import ConversationError, ForeignChat, read_foreign
from edgekv.conversation import foreign


def node(role, *parts, parent=None):
    message = {
        "author": {"role": role},
        "content": {"content_type": "text", "parts": list(parts)},
        "weight": 1,
    }
    return {"id": "x", "message": message, "parent": parent, "children": []}


CHATGPT = [
    {
        "title": "Trains",
        "create_time": 1.5,
        "current_node": "f",
        "mapping": {
            "a": {"id": "a", "message": None, "parent": None},
            "b": node("system", "Be brief", parent="a"),
            "c": node("user", "first", {"asset_pointer": "file-1"}, "more", parent="b"),
            "old": node("assistant", "the other branch", parent="c"),
            "d": node("tool", parent="c"),
            "e": node("assistant", "looking it up", parent="d"),
            "f": node("assistant", "an answer", parent="e"),
        },
    },
    {"title": None, "current_node": "a", "mapping": {"a": node("user", "")}},
    {
        "title": "Round",
        "current_node": "a",
        "mapping": {"a": node("user", "hi", parent="b"), "b": node("x", parent="a")},
    },
]
TRAINS = ForeignChat("Trains", (("first\n\nmore", "looking it up\n\nan answer"),), "Be brief", num_left_out=1)
ROUND = ForeignChat("Round", (("hi", ""),), None)


def write_llm(path, *statements):
    with closing(sqlite3.connect(path)) as db:
        db.executescript(
            "CREATE TABLE conversations (id TEXT PRIMARY KEY, name TEXT, model TEXT);" + "".join(statements)
        )
        db.commit()
    return path


RESPONSES = (
    "CREATE TABLE responses (id TEXT, model TEXT, prompt TEXT, system TEXT, response TEXT, conversation_id TEXT);"
    "INSERT INTO conversations VALUES ('c1', 'Ships', 'm');"
    "INSERT INTO responses VALUES ('2', 'm', 'second', NULL, 'two', 'c1'), ('1', 'm', 'first', 'S', 'one', 'c1');"
)


def test_exports_of_chatgpt_are_read(tmp_path):
    """Guards imports: the current branch, tools' and empty messages left out, a loop of parents ended."""
    (tmp_path / "conversations.json").write_text(json.dumps(CHATGPT))
    with zipfile.ZipFile(tmp_path / "export.zip", "w") as archive:
        archive.write(tmp_path / "conversations.json", "conversations.json")
    for name in ("conversations.json", "export.zip"):
        assert read_foreign(tmp_path / name) == [TRAINS, ROUND]


def test_what_is_no_text_is_counted_and_code_comes(tmp_path):
    """Guards against losses in silence: images, files, tools' output and reasoning; code is a fenced block."""
    code = {"content_type": "code", "language": "python", "text": "print('```')"}
    output = {"content_type": "execution_output", "text": "1"}
    picture = {"content_type": "image_asset_pointer", "asset_pointer": "file-1"}
    spoken = {"content_type": "audio_transcription", "text": "aloud"}
    mapping = {
        "a": node("user", "first", picture, spoken),
        "b": {**node("assistant", parent="a")},
        "c": {**node("tool", parent="b")},
        "d": node("user", picture, parent="c"),
        "e": node("assistant", "a cat", parent="d"),
        "f": node("user", "and now?", parent="e"),
    }
    mapping["a"]["message"]["metadata"] = {"attachments": [{"name": "x.png"}, {"name": "y.pdf"}]}
    mapping["b"]["message"]["content"] = code
    mapping["c"]["message"]["content"] = output
    (tmp_path / "c.json").write_text(json.dumps([{"title": "T", "current_node": "f", "mapping": mapping}]))
    (chat,) = read_foreign(tmp_path / "c.json")
    assert chat.said == (
        ("first\n\naloud", "````python\nprint('```')\n````"),
        (foreign.NO_TEXT, "a cat"),
        ("and now?", ""),
    )
    assert chat.num_left_out == 2 + 1 + 1
    assert "without 4 parts" in chat.notice


def test_logs_of_llm_are_read(tmp_path):
    """Guards imports of logs.db: in order, with the system prompt, and the file is not written."""
    path = write_llm(tmp_path / "logs.db", RESPONSES)
    before = path.read_bytes()
    assert read_foreign(path) == [ForeignChat("Ships", (("first", "one"), ("second", "two")), "S")]
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]


HOSTILE = {
    "nothing": b"",
    "no JSON": b"\xff\xfe\x00",
    "deep": b"[" * 100_000,
    "another shape": b'{"mapping": {}}',
    "no text": json.dumps([CHATGPT[1]]).encode(),
    "a torn archive": b"PK\x03\x04" + b"\0" * 40,
    "a torn database": b"SQLite format 3\0" + b"\xff" * 4096,
}


@pytest.mark.parametrize("data", HOSTILE.values(), ids=HOSTILE.keys())
def test_what_is_no_export_is_one_clear_error(tmp_path, data):
    """Guards against tracebacks from files that people download."""
    path = tmp_path / "file"
    path.write_bytes(data)
    with pytest.raises(ConversationError):
        read_foreign(path)


@pytest.mark.parametrize(
    "method", [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED, zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA]
)
def test_a_damaged_archive_is_one_clear_error(tmp_path, method):
    """Guards the chat: errors of zlib and lzma came out of zipfile as they are, and ended the program."""
    path = tmp_path / "export.zip"
    with zipfile.ZipFile(path, "w", method) as archive:
        archive.writestr("conversations.json", json.dumps(CHATGPT))
        start = archive.fp.tell()
    num_refused = 0
    for at in range(52, start, 29):
        data = bytearray(path.read_bytes())
        data[at : at + 3] = bytes(byte ^ 0xFF for byte in data[at : at + 3])
        torn = tmp_path / "torn.zip"
        torn.write_bytes(data)
        try:
            assert read_foreign(torn) == [TRAINS, ROUND]
        except ConversationError:
            num_refused += 1
    assert num_refused > 5


def test_what_is_too_long_is_refused_and_the_others_come(tmp_path, monkeypatch, open_runtime):
    """Guards against cuts in silence: exchanges, characters and rows beyond the limits just were not there."""
    monkeypatch.setattr(foreign, "MOST_EXCHANGES", 2)
    monkeypatch.setattr(foreign, "MOST_ROWS", 6)
    monkeypatch.setattr(foreign, "LARGEST_TEXT", 5000)
    many = "".join(f", ('{n}', 'm', 'q{n}', NULL, 'a', 'c2')" for n in (3, 4, 5))
    chats = "INSERT INTO conversations VALUES ('c2', 'Long', 'm'), ('c3', 'Wide', 'm');"
    wide = "INSERT INTO responses VALUES ('6', 'm', replace(hex(zeroblob(4000)), '0', 'x'), NULL, 'a', 'c3')"
    path = write_llm(tmp_path / "logs.db", RESPONSES[:-1] + many + ";" + chats)
    ships, long = read_foreign(path)
    assert (ships.title, ships.refusal, len(ships.said)) == ("Ships", None, 2)
    assert (long.title, long.said, long.refusal) == ("Long", (), "it has more than 2 exchanges")
    runtime = open_runtime()
    with pytest.raises(ConversationError, match="'Long' is not imported: it has more than 2 exchanges"):
        runtime.import_foreign(long)
    assert runtime.names() == []
    with closing(sqlite3.connect(path)) as db:
        db.executescript(wide)
    with pytest.raises(ConversationError, match="no log of llm's that can be read"):
        read_foreign(path)
    monkeypatch.setattr(foreign, "MOST_ROWS", 5)
    monkeypatch.setattr(foreign, "LARGEST_TEXT", 9000)
    with pytest.raises(ConversationError, match="more than 5 answers"):
        read_foreign(path)
    long_word = [{"title": "T", "current_node": "a", "mapping": {"a": node("user", "x" * 9001)}}]
    (tmp_path / "c.json").write_text(json.dumps([*long_word, CHATGPT[0]]))
    refused, trains = read_foreign(tmp_path / "c.json")
    assert (refused.refusal, trains) == ("a message has more than 9,000 characters", TRAINS)


def test_names_come_from_any_title_and_are_never_taken_twice(open_runtime):
    """Guards titles cut at a blank, which were no names, and two imports of one title at the same time."""
    runtime = open_runtime()
    assert runtime.import_foreign(ForeignChat("x" * 99 + " yz", TRAINS.said)) == "x" * 99
    threads = [threading.Thread(target=runtime.import_foreign, args=(TRAINS,)) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(runtime.names()) == ["Trains", "Trains 2", "Trains 3", "Trains 4", "x" * 99]
    assert all(len(runtime.conversation(name).history()) == 1 for name in runtime.names())


def test_a_database_of_views_that_never_end_is_refused(tmp_path):
    """Guards against a schema that computes: a view in a table's place is not followed."""
    endless = "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n) SELECT i FROM n"
    path = write_llm(tmp_path / "view.db", f"CREATE VIEW responses AS {endless};")
    with pytest.raises(ConversationError, match="no tables"):
        read_foreign(path)


def test_an_imported_conversation_goes_on(open_runtime):
    """Guards what imports are for: kept under a free name, and the next message sees all of it."""
    runtime = open_runtime()
    assert [runtime.import_foreign(TRAINS), runtime.import_foreign(TRAINS)] == ["Trains", "Trains 2"]
    assert runtime.import_foreign(ForeignChat("a\x1b[2J\nb", TRAINS.said)) == "a [2J b"
    runtime.close()
    runtime = open_runtime()
    chat = runtime.conversation("Trains")
    assert [(turn.user, turn.answer) for turn in chat.history()] == list(TRAINS.said)
    assert chat.system == "Be brief"
    result = chat.send("and now?")
    seen = runtime._worker.front.tokenizer.decode(runtime._worker.engine.requests[0].token_ids, special=True)
    assert seen == (
        "<s><|system\nBe brief|><|user\nfirst\n\nmore|><|assistant\nlooking it up\n\nan answer|>"
        "<|user\nand now?|><|assistant\n"
    )
    assert result.text == "hello there"
