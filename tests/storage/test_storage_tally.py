"""The count of what transcripts.db should hold."""

import shutil

import pytest

from edgekv_storage import DataDir, Transcripts


def _filled(path, turns):
    with DataDir.open(path) as directory, Transcripts.open(directory) as transcripts:
        row = transcripts.get("a") or transcripts.create_conversation("a", b"a" * 16)
        for turn in range(turns):
            transcripts.append_turn(row.id, None, b"turn %d" % turn)


def _opened(path):
    """(notices, number of conversations, number of turns of the first)."""
    with DataDir.open(path) as directory, Transcripts.open(directory) as transcripts:
        rows = transcripts.conversations()
        return transcripts.notices, len(rows), len(transcripts.turns(rows[0].id)) if rows else 0


def test_a_cut_journal_is_noticed(data_dir):
    """Guards acknowledged turns behind a flipped bit of the journal, which SQLite drops without a word."""
    with DataDir.open(data_dir) as directory, Transcripts.open(directory) as transcripts:
        row = transcripts.create_conversation("a", b"a" * 16)
        for turn in range(5):
            transcripts.append_turn(row.id, None, b"turn %d" % turn)
        crashed = data_dir.with_name("crashed")
        shutil.copytree(data_dir, crashed)
    wal = crashed / "transcripts.db-wal"
    data = bytearray(wal.read_bytes())
    data[-100] ^= 1  # the last turn's last page
    wal.write_bytes(data)
    notices, conversations, turns = _opened(crashed)
    assert (conversations, turns) == (1, 4)
    assert len(notices) == 1
    assert "the last 1 change(s)" in notices[0]


def test_a_count_that_lags_is_no_damage(data_dir):
    """Guards a power loss: the count beside the file is not synced, so it may be old, cut or missing."""
    _filled(data_dir, 2)
    seen = data_dir / "transcripts.seen"
    old = seen.read_bytes()
    _filled(data_dir, 2)
    for content in (old, old[:5], b"", None):
        seen.unlink(missing_ok=True)
        if content is not None:
            seen.write_bytes(content)
        assert _opened(data_dir) == ([], 1, 4)


@pytest.mark.parametrize("statement", ["DELETE FROM conversations", "DELETE FROM tally"])
def test_hidden_rows_are_noticed(data_dir, statement):
    """Guards conversations that a flipped bit in a page's header hides, and the count itself."""
    _filled(data_dir, 1)
    with DataDir.open(data_dir) as directory, Transcripts.open(directory) as transcripts:
        transcripts._db.execute(statement)
    notices, _, _ = _opened(data_dir)
    assert len(notices) == 1
    assert "transcripts.db is damaged" in notices[0]


def test_deleting_is_counted(data_dir):
    """Guards against a count that calls every deleted conversation lost."""
    _filled(data_dir, 1)
    with DataDir.open(data_dir) as directory, Transcripts.open(directory) as transcripts:
        row = transcripts.get("a")
        transcripts.create_conversation("b", b"b" * 16)
        transcripts.delete(row.id)
        transcripts.delete(row.id)
        transcripts.delete_sequence(b"never" * 3)
    assert _opened(data_dir)[:2] == ([], 1)
