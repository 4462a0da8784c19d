"""What people wrote: durable, ordered in branches, damage named, deletion thorough."""

from __future__ import annotations

import os
import random
import shutil
import sqlite3
import threading

import pytest
from storage_fixtures import OTHER, SEQUENCE

from edgekv_storage import (
    DataDir,
    DiskFull,
    KeyUnavailable,
    NameTaken,
    NoSuchConversation,
    StorageError,
    StoreClosed,
    TranscriptDamaged,
    Transcripts,
    UnknownFormat,
    Unwritable,
)
from edgekv_storage.crypt import MemoryKeys
from edgekv_storage.transcripts.transcriptfile import translated


@pytest.fixture
def directory(data_dir):
    with DataDir.open(data_dir) as directory:
        yield directory


@pytest.fixture(params=["sealed", "plain"])
def keys(request):
    """Every test runs with and without encryption."""
    return MemoryKeys() if request.param == "sealed" else None


def test_branches_and_heads_survive_a_restart(directory, keys):
    """Guards parents, the head, and the order of turns."""
    with Transcripts.open(directory, keys) as transcripts:
        chat = transcripts.create_conversation("trip", SEQUENCE, b"meta")
        first = transcripts.append_turn(chat.id, None, b"one")
        second = transcripts.append_turn(chat.id, first, b"two")
        aside = transcripts.append_turn(chat.id, first, b"draft", head=False)
        transcripts.update_turn(aside, b"other")
        transcripts.rename(chat.id, "journey")
    with Transcripts.open(directory, keys) as transcripts:
        chat = transcripts.get("journey")
        assert chat == (chat.id, "journey", SEQUENCE, b"meta", second, 3, chat.created)
        turns = [(t.id, t.parent, t.blob) for t in transcripts.turns(chat.id)]
        assert turns == [(first, None, b"one"), (second, first, b"two"), (aside, first, b"other")]
        transcripts.set_head(chat.id, aside)
        assert transcripts.conversations()[0].head == aside
        assert transcripts.get("trip") is None


def test_several_turns_are_kept_together_or_not_at_all(directory, keys):
    """Guards imports: a full drive left the first half of a conversation, as a branch nobody asked for."""
    with Transcripts.open(directory, keys) as transcripts:
        chat = transcripts.create_conversation("trip", SEQUENCE)
        first = transcripts.append_turn(chat.id, None, b"one")
        rows = transcripts.append_turns(chat.id, first, [b"two", b"three"])
        with pytest.raises(TypeError):  # at the second one, in the middle of the transaction
            transcripts.append_turns(chat.id, rows[-1], [b"four", "no bytes"])
    with Transcripts.open(directory, keys) as transcripts:
        turns = [(t.id, t.parent, t.blob) for t in transcripts.turns(chat.id)]
        assert turns == [(first, None, b"one"), (rows[0], first, b"two"), (rows[1], rows[0], b"three")]
        assert transcripts.get("trip").head == rows[1]


def test_wrong_names_and_ids_are_refused(directory, keys):
    """Guards turns that would hang in another conversation, and two conversations of one name."""
    with Transcripts.open(directory, keys) as transcripts:
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


def test_a_deleted_conversation_leaves_no_bytes(directory, keys):
    """Guards secure_delete and the emptied journal, before and after close; ids are not given again."""
    with Transcripts.open(directory, keys) as transcripts:
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


def test_a_flipped_row_is_named(directory, keys):
    """Guards the checksum of a turn: the right turn is named, the others stay readable."""
    with Transcripts.open(directory, keys) as transcripts:
        chat = transcripts.create_conversation("trip", SEQUENCE)
        turns = [transcripts.append_turn(chat.id, None, b"blob %d" % i) for i in range(3)]
    with sqlite3.connect(directory.path / "transcripts.db") as db:
        db.execute("UPDATE turns SET content = substr(content, 1, 20) || x'07' WHERE id = ?", (turns[1],))
    db.close()
    with Transcripts.open(directory, keys) as transcripts:
        with pytest.raises(TranscriptDamaged, match=f"turn {turns[1]} ") as caught:
            transcripts.turns(chat.id)
        assert caught.value.turn_id == turns[1]
        good, bad = transcripts.readable_turns(chat.id)
        assert [(t.id, t.blob) for t in good] == [(turns[0], b"blob 0"), (turns[2], b"blob 2")]
        assert [t.id for t in bad] == [turns[1]]
        assert transcripts.damaged_turns(chat.id) == [turns[1]]
        transcripts.delete(chat.id)
        assert transcripts.conversations() == []


def test_a_flipped_byte_anywhere_is_detected_or_harmless(directory, keys, copy):
    """Guards the whole file: 300 random flips never change, hide or reorder a turn in silence."""
    with Transcripts.open(directory, keys) as transcripts:
        chat = transcripts.create_conversation("trip", SEQUENCE)
        for i in range(12):
            transcripts.append_turn(chat.id, None, b"%03d " % i * 50)
        good = transcripts.turns(chat.id)
        row = transcripts.get("trip")
    data = (directory.path / "transcripts.db").read_bytes()
    rng = random.Random(3)
    detected = 0
    for _ in range(300):
        flipped = bytearray(data)
        flipped[rng.randrange(len(data))] ^= 1 << rng.randrange(8)
        shutil.rmtree(copy, ignore_errors=True)
        copy.mkdir()
        (copy / "transcripts.db").write_bytes(flipped)
        try:
            with DataDir.open(copy) as other, Transcripts.open(other, keys) as transcripts:
                found = transcripts.get("trip")
                if found is None:
                    assert transcripts.damaged_conversations()
                    detected += 1
                    continue
                assert found == row
                assert transcripts.turns(row.id) == good
        except StorageError:
            detected += 1
    assert detected > 40


def test_threads_share_one_connection(directory, keys):
    """Guards the lock: turns of eight threads all arrive, none twice."""
    with Transcripts.open(directory, keys) as transcripts:
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


def test_newer_and_foreign_files_are_left_alone(directory, keys):
    """Guards the schema version, and somebody else's SQLite file of the same name."""
    path = directory.path / "transcripts.db"
    for statement in ("PRAGMA user_version = 9", "CREATE TABLE theirs (x)", "PRAGMA user_version = 1"):
        path.unlink(missing_ok=True)
        with sqlite3.connect(path) as db:
            db.execute(statement)
        db.close()
        before = path.read_bytes()
        with pytest.raises(UnknownFormat):
            Transcripts.open(directory, keys)
        assert path.read_bytes() == before
    path.write_bytes(b"not a database at all" * 100)
    with pytest.raises(TranscriptDamaged):
        Transcripts.open(directory, keys)


def test_what_people_wrote_is_not_in_the_file(directory):
    """Guards encryption: names, descriptions and turns are nowhere readable while they exist."""
    keys = MemoryKeys()
    with Transcripts.open(directory, keys) as transcripts:
        chat = transcripts.create_conversation("CANARY name", SEQUENCE, b"CANARY meta")
        turn = transcripts.append_turn(chat.id, None, b"CANARY text" * 500)
        transcripts.update_turn(turn, b"CANARY more")
        transcripts.rename(chat.id, "CANARY again")
        for file in directory.path.iterdir():
            assert b"CANARY" not in file.read_bytes(), file.name
        assert transcripts.get("CANARY again").meta == b"CANARY meta"


def test_a_destroyed_key_leaves_nothing_to_read(directory):
    """Guards forgetting: without its key a conversation is damaged, and nothing can be added to it."""
    keys = MemoryKeys()
    with Transcripts.open(directory, keys) as transcripts:
        chat = transcripts.create_conversation("a", SEQUENCE)
        transcripts.append_turn(chat.id, None, b"x")
        keys.destroy(SEQUENCE)
        assert (transcripts.conversations(), transcripts.get("a")) == ([], None)
    with Transcripts.open(directory, keys) as transcripts:
        assert [(c.id, c.sequence_id) for c in transcripts.damaged_conversations()] == [(chat.id, SEQUENCE)]
        with pytest.raises(TranscriptDamaged, match=r"keys\.db"):
            transcripts.append_turn(chat.id, None, b"y")
        assert len(transcripts.readable_turns(chat.id)[1]) == 1
        transcripts.delete_sequence(SEQUENCE)
        assert transcripts.damaged_conversations() == []


@pytest.mark.parametrize(
    "change",
    [
        "UPDATE turns SET content = (SELECT content FROM turns WHERE id = 2) WHERE id = 1",
        "UPDATE turns SET parent = 1 WHERE id = 3",
        "UPDATE turns SET created = created + 1 WHERE id = 1",
        "UPDATE turns SET conversation = 2 WHERE id = 3",
        "UPDATE turns SET id = 9 WHERE id = 3",
        "UPDATE turns SET content = 'text' WHERE id = 3",
        "DELETE FROM turns WHERE id = 3",
        "UPDATE conversations SET head = 1 WHERE id = 1",
        "UPDATE conversations SET turns = 2 WHERE id = 1",
        "UPDATE conversations SET sequence_id = x'00' WHERE id = 1",
        "UPDATE conversations SET content = (SELECT content FROM conversations WHERE id = 2) WHERE id = 1",
        "UPDATE conversations SET head = 'text' WHERE id = 1",
    ],
)
def test_rows_cannot_be_exchanged_or_rewired(directory, keys, change):
    """Guards what is bound to each seal: its place, its parent, its conversation, the head, the count."""
    with Transcripts.open(directory, keys) as transcripts:
        a = transcripts.create_conversation("a", SEQUENCE)
        b = transcripts.create_conversation("b", OTHER)
        last = None
        for blob in (b"one", b"two", b"six"):
            last = transcripts.append_turn(a.id, last, blob)
    with sqlite3.connect(directory.path / "transcripts.db") as db:
        db.execute(change)
    db.close()
    with Transcripts.open(directory, keys) as transcripts:
        with pytest.raises(TranscriptDamaged):
            transcripts.turns(a.id)
        assert [c.name for c in transcripts.conversations() if c.name != "a"] == ["b"]
        assert transcripts.get("b").id == b.id


def test_sealed_and_plain_rows_never_share_a_file(directory, keys):
    """Guards against text written in the clear beside sealed text, and the other way round."""
    Transcripts.open(directory, keys).close()
    before = (directory.path / "transcripts.db").read_bytes()
    with pytest.raises(KeyUnavailable, match="encryption off"):
        Transcripts.open(directory, MemoryKeys() if keys is None else None)
    assert (directory.path / "transcripts.db").read_bytes() == before


def test_a_pipe_or_a_link_in_its_place_is_refused(directory, keys, tmp_path):
    """Guards planted files: no hanging, no following."""
    path = directory.path / "transcripts.db"
    os.mkfifo(path)
    with pytest.raises(UnknownFormat):
        Transcripts.open(directory, keys)
    path.unlink()
    path.symlink_to(tmp_path / "theirs")
    with pytest.raises(Unwritable):
        Transcripts.open(directory, keys)
    assert not (tmp_path / "theirs").exists()


@pytest.mark.parametrize("what", ["removed", "replaced", "folder removed"])
def test_a_turn_is_not_acknowledged_into_a_removed_file(directory, keys, what):
    """Guards the promise: SQLite commits into a file without a name, and nobody ever finds the turn."""
    path = directory.path / "transcripts.db"
    with Transcripts.open(directory, keys) as transcripts:
        chat = transcripts.create_conversation("trip", SEQUENCE)
        transcripts.append_turn(chat.id, None, b"kept")
        if what == "folder removed":
            shutil.rmtree(directory.path)
        else:
            path.unlink()
        if what == "replaced":
            path.touch()
        with pytest.raises(Unwritable, match="was removed or replaced"):
            transcripts.append_turn(chat.id, None, b"lost")
        assert len(transcripts.turns(chat.id)) == 1, "what was acknowledged can be read on"


def test_a_damaged_sql_index_hides_no_turn(directory, keys):
    """Guards turns: a flipped bit in SQLite's index showed one turn twice instead of another, and their number was
    right. A forget by that index would have left the hidden row behind."""
    with Transcripts.open(directory, keys) as transcripts:
        chats = [transcripts.create_conversation(n, s) for n, s in (("a", SEQUENCE), ("b", OTHER))]
        for chat in chats:
            for text in (b"one", b"two", b"three"):
                transcripts.append_turn(chat.id, None, text)
    path = directory.path / "transcripts.db"
    with sqlite3.connect(path) as db:
        (root,) = db.execute("SELECT rootpage FROM sqlite_master WHERE name = 'turns_of'").fetchone()
    db.close()
    data = bytearray(path.read_bytes())
    page = slice((root - 1) * 4096, root * 4096)
    entry = b"\x04\x01\x01\x01\x02\x05\x05"  # record header, conversation 2, turn 5, its row
    assert data[page].count(entry) == 1
    data[page.start + data[page].index(entry) + 6] ^= 1
    path.write_bytes(data)
    with Transcripts.open(directory, keys) as transcripts:
        assert [t.blob for t in transcripts.turns(chats[1].id)] == [b"one", b"two", b"three"]
        transcripts.delete(chats[1].id)
    with sqlite3.connect(path) as db:
        assert db.execute("SELECT count(*) FROM turns").fetchone() == (3,)
    db.close()


@pytest.mark.parametrize(
    ("code", "kind", "says"),
    [
        (sqlite3.SQLITE_FULL, DiskFull, "free some space"),
        (sqlite3.SQLITE_IOERR_SHMSIZE, DiskFull, "free some space"),
        (sqlite3.SQLITE_IOERR_READ, StorageError, "is the drive full, or failing?"),
    ],
)
def test_a_full_drive_is_known_by_each_of_its_codes(code, kind, says):
    """Guards a drive without one free page: opening ended with "disk I/O error", not from memory."""
    error = sqlite3.OperationalError("disk I/O error")
    error.sqlite_errorcode = code
    with pytest.raises(StorageError, match=says) as caught, translated("transcripts.db"):
        raise error
    assert type(caught.value) is kind
