"""What people wrote: durable, ordered in branches, damage named, deletion thorough."""

from __future__ import annotations

import random
import shutil
import sqlite3
import threading

import pytest
from storage_fixtures import OTHER, SEQUENCE

from edgekv_storage import (
    DataDir,
    NameTaken,
    NoSuchConversation,
    StorageError,
    StoreClosed,
    TranscriptDamaged,
    Transcripts,
    UnknownFormat,
)


@pytest.fixture
def directory(data_dir):
    with DataDir.open(data_dir) as directory:
        yield directory


def test_branches_and_heads_survive_a_restart(directory):
    """Guards parents, the head, and the order of turns."""
    with Transcripts.open(directory) as transcripts:
        chat = transcripts.create_conversation("trip", SEQUENCE, b"meta")
        first = transcripts.append_turn(chat.id, None, b"one")
        second = transcripts.append_turn(chat.id, first, b"two")
        aside = transcripts.append_turn(chat.id, first, b"draft", head=False)
        transcripts.update_turn(aside, b"other")
        transcripts.rename(chat.id, "journey")
        transcripts.set_meta(chat.id, b"more")
    with Transcripts.open(directory) as transcripts:
        chat = transcripts.get("journey")
        assert chat == (chat.id, "journey", SEQUENCE, b"more", second, 3, chat.created)
        turns = [(t.id, t.parent, t.blob) for t in transcripts.turns(chat.id)]
        assert turns == [(first, None, b"one"), (second, first, b"two"), (aside, first, b"other")]
        transcripts.set_head(chat.id, aside)
        assert transcripts.conversations()[0].head == aside
        assert transcripts.get("trip") is None


def test_wrong_names_and_ids_are_refused(directory):
    """Guards turns that would hang in another conversation, and two conversations of one name."""
    with Transcripts.open(directory) as transcripts:
        a = transcripts.create_conversation("a", SEQUENCE)
        b = transcripts.create_conversation("b", OTHER)
        turn = transcripts.append_turn(a.id, None, b"x")
        with pytest.raises(NameTaken):
            transcripts.create_conversation("a", OTHER)
        with pytest.raises(NameTaken):
            transcripts.rename(b.id, "a")
        for wrong in (
            lambda: transcripts.append_turn(b.id, turn, b"y"),
            lambda: transcripts.set_head(b.id, turn),
            lambda: transcripts.append_turn(99, None, b"y"),
            lambda: transcripts.update_turn(99, b"y"),
        ):
            with pytest.raises(NoSuchConversation):
                wrong()
        assert transcripts.turns(b.id) == []
    with pytest.raises(StoreClosed):
        transcripts.conversations()


def test_a_deleted_conversation_leaves_no_bytes(directory):
    """Guards secure_delete and the emptied journal, before and after close; ids are not given again."""
    with Transcripts.open(directory) as transcripts:
        chat = transcripts.create_conversation("secret name", SEQUENCE, b"CANARY meta")
        turn = transcripts.append_turn(chat.id, None, b"CANARY " + b"text " * 5000)
        transcripts.update_turn(turn, b"CANARY two")
        kept = transcripts.create_conversation("kept", OTHER)
        transcripts.append_turn(kept.id, None, b"stays")
        transcripts.delete(chat.id)
        for file in directory.path.iterdir():
            data = file.read_bytes()
            assert not any(word in data for word in (b"CANARY", b"secret name", SEQUENCE)), file.name
        assert [t.blob for t in transcripts.turns(kept.id)] == [b"stays"]
        assert transcripts.create_conversation("new", SEQUENCE).id > kept.id


def test_a_flipped_row_is_named(directory):
    """Guards the checksum of a turn: the right turn is named, the others stay readable."""
    with Transcripts.open(directory) as transcripts:
        chat = transcripts.create_conversation("trip", SEQUENCE)
        turns = [transcripts.append_turn(chat.id, None, b"blob %d" % i) for i in range(3)]
    with sqlite3.connect(directory.path / "transcripts.db") as db:
        db.execute("UPDATE turns SET blob = ? WHERE id = ?", (b"blob 7", turns[1]))
    db.close()
    with Transcripts.open(directory) as transcripts:
        with pytest.raises(TranscriptDamaged, match=f"turn {turns[1]} ") as caught:
            transcripts.turns(chat.id)
        assert caught.value.turn_id == turns[1]
        assert transcripts.damaged_turns(chat.id) == [turns[1]]
        transcripts.delete(chat.id)
        assert transcripts.conversations() == []


def test_a_flipped_byte_anywhere_is_detected_or_harmless(directory, tmp_path):
    """Guards the whole file: 300 random flips never change, hide or reorder a turn in silence."""
    with Transcripts.open(directory) as transcripts:
        chat = transcripts.create_conversation("trip", SEQUENCE)
        for i in range(12):
            transcripts.append_turn(chat.id, None, b"%03d " % i * 50)
        good = transcripts.turns(chat.id)
        row = transcripts.get("trip")
    data = (directory.path / "transcripts.db").read_bytes()
    rng = random.Random(3)
    detected = 0
    copy = tmp_path / "copy"
    for _ in range(300):
        flipped = bytearray(data)
        flipped[rng.randrange(len(data))] ^= 1 << rng.randrange(8)
        shutil.rmtree(copy, ignore_errors=True)
        copy.mkdir()
        (copy / "transcripts.db").write_bytes(flipped)
        try:
            with DataDir.open(copy) as other, Transcripts.open(other) as transcripts:
                found = transcripts.get("trip")
                if found is None:
                    assert transcripts.conversations() == [row]  # only the name's index is damaged
                    continue
                assert found == row
                assert transcripts.turns(row.id) == good
        except StorageError:
            detected += 1
    assert detected > 50


def test_threads_share_one_connection(directory):
    """Guards the lock: turns of eight threads all arrive, none twice."""
    with Transcripts.open(directory) as transcripts:
        chat = transcripts.create_conversation("trip", SEQUENCE)

        def write(number):
            for i in range(5):
                transcripts.append_turn(chat.id, None, b"%d %d" % (number, i))

        threads = [threading.Thread(target=write, args=(n,)) for n in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        blobs = {t.blob for t in transcripts.turns(chat.id)}
        assert blobs == {b"%d %d" % (n, i) for n in range(8) for i in range(5)}


def test_newer_and_foreign_files_are_left_alone(directory):
    """Guards the schema version, and somebody else's SQLite file of the same name."""
    path = directory.path / "transcripts.db"
    for statement in ("PRAGMA user_version = 9", "CREATE TABLE theirs (x)"):
        path.unlink(missing_ok=True)
        with sqlite3.connect(path) as db:
            db.execute(statement)
        db.close()
        before = path.read_bytes()
        with pytest.raises(UnknownFormat):
            Transcripts.open(directory)
        assert path.read_bytes() == before
    path.write_bytes(b"not a database at all" * 100)
    with pytest.raises(TranscriptDamaged):
        Transcripts.open(directory)
