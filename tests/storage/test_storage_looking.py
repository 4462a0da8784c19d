"""Looking at a data directory: nothing is made in it, nothing is waited for, a later writer is seen."""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
import sys
from typing import TYPE_CHECKING

import pytest
from storage_fixtures import SEQUENCE

from edgekv_storage import DataDir, Locked, Transcripts, UnknownFormat, check_directory
from edgekv_storage.backup import back_up

if TYPE_CHECKING:
    from pathlib import Path

CASES = """
import os, sys
from pathlib import Path
from edgekv_storage import DataDir, StorageError, check_directory
from edgekv_storage.backup import back_up
path, target = Path(sys.argv[1]), Path(sys.argv[2])
for name in ("LOCK", "meta.json", "transcripts.db", "keys.db"):
    kept = path / f"{name}.kept"
    if (path / name).exists():
        (path / name).rename(kept)
    os.mkfifo(path / name)
    for look in (lambda: DataDir.owner(path), lambda: back_up(path, target),
                 lambda: check_directory(DataDir.open_read_only(path), None)):
        try:
            found = look()
            print(name, "problems", [p.file for p in getattr(found, "problems", [])])
        except StorageError as error:
            print(name, "refused", error)
    (path / name).unlink()
    if kept.exists():
        kept.rename(path / name)
    if target.exists():
        import shutil
        shutil.rmtree(target)
"""
LOOK = """
import sys
from pathlib import Path
from edgekv_storage import DataDir, Transcripts, check_directory
from edgekv_storage.backup import back_up
directory = DataDir.open_read_only(Path(sys.argv[1]))
with Transcripts.open(directory) as transcripts:
    print([row.name for row in transcripts.conversations()])
print(check_directory(directory, None).problems)
print(back_up(Path(sys.argv[1]), Path(sys.argv[2])).num_files)
"""


def _one_turn(path: Path) -> int:
    """A cleanly closed directory with a conversation "trip" of one turn; its id."""
    with DataDir.open(path) as directory, Transcripts.open(directory) as transcripts:
        chat = transcripts.create_conversation("trip", SEQUENCE)
        transcripts.append_turn(chat.id, None, b"one")
        return chat.id


def _python(program: str, *args: object, prefix: tuple[str, ...] = ()) -> list[str]:
    command = [*prefix, sys.executable, "-c", program, *map(str, args)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()


def test_looking_leaves_no_file_behind(data_dir, tmp_path):
    """Guards "looking changes nothing": SQLite left -wal and -shm beside a cleanly closed transcripts.db."""
    _one_turn(data_dir)
    before = sorted(path.name for path in data_dir.iterdir())
    with DataDir.open_read_only(data_dir) as directory:
        with Transcripts.open(directory) as transcripts:
            assert [row.name for row in transcripts.conversations()] == ["trip"]
        assert check_directory(directory, None).problems == []
    back_up(data_dir, tmp_path / "copy")
    assert sorted(path.name for path in data_dir.iterdir()) == before


def test_a_reader_that_was_there_first_sees_what_is_written_later(data_dir):
    """Guards reading a file at rest: it may not go on showing old pages once a writer came, or came and left."""
    chat = _one_turn(data_dir)
    with DataDir.open_read_only(data_dir) as looked_at, Transcripts.open(looked_at) as reader:
        assert len(reader.turns(chat)) == 1
        with DataDir.open(data_dir) as directory, Transcripts.open(directory) as writer:
            writer.append_turn(chat, None, b"two")
            assert [turn.blob for turn in reader.turns(chat)] == [b"one", b"two"]
    with DataDir.open_read_only(data_dir) as looked_at, Transcripts.open(looked_at) as reader:
        assert len(reader.turns(chat)) == 2
        with DataDir.open(data_dir) as directory, Transcripts.open(directory) as writer:
            writer.append_turn(chat, None, b"three")
        assert len(reader.turns(chat)) == 3


def test_pipes_under_the_names_of_our_files_are_refused(data_dir, tmp_path):
    """Guards every command: LOCK, meta.json or a database being a pipe made them wait for ever."""
    _one_turn(data_dir)
    lines = _python(CASES, data_dir, tmp_path / "copy")
    refused = [line for line in lines if " refused " in line]
    assert [line.split()[0] for line in refused] == ["meta.json", "meta.json", "transcripts.db", "keys.db"]
    assert "transcripts.db problems ['transcripts.db', 'transcripts.db']" in lines
    assert "keys.db problems ['keys.db']" in lines


def test_a_directory_that_cannot_be_written_can_be_read(data_dir, tmp_path):
    """Guards a backup on a read-only medium: "attempt to write a readonly database" for each look at it."""
    drop: tuple[str, ...] = ()
    if os.geteuid() == 0:
        if shutil.which("setpriv") is None:
            pytest.skip("root may write everywhere, and setpriv is not there to give that up")
        powers = "-dac_override,-dac_read_search"
        drop = ("setpriv", f"--inh-caps={powers}", f"--bounding-set={powers}")
    _one_turn(data_dir)
    for path in data_dir.iterdir():
        path.chmod(0o400)
    data_dir.chmod(0o500)
    try:
        assert _python(LOOK, data_dir, tmp_path / "copy", prefix=drop) == ["['trip']", "[]", "2"]
    finally:
        data_dir.chmod(0o700)


@pytest.mark.parametrize(
    "text", ["[" * 60_000, '{"format": 2, "uuid": "\\u001b[2J"}', '{"format": 2, "uuid": 7}']
)
def test_a_planted_meta_json_is_one_clear_line(data_dir, text):
    """Guards against deep nesting (RecursionError in every command) and an id that is none."""
    _one_turn(data_dir)
    (data_dir / "meta.json").write_text(text)
    with pytest.raises(UnknownFormat, match="is damaged or not edgekv's"):
        DataDir.open(data_dir)


def test_removing_the_lock_lets_nobody_in(data_dir):
    """Guards the one writer: LOCK removed by hand let a second process write beside the first."""
    with DataDir.open(data_dir):
        (data_dir / "LOCK").unlink()
        with pytest.raises(Locked):
            DataDir.open(data_dir)
    with contextlib.closing(DataDir.open(data_dir)) as directory:
        assert directory.is_writable


def test_our_log_is_silent_unless_asked_for(data_dir):
    """Guards programs that use the package: without a handler Python printed our tracebacks on their stderr."""
    program = "import logging, edgekv_storage; logging.getLogger('edgekv_storage.io.pread').error('secret')"
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, timeout=60, check=True
    )
    assert done.stderr == ""
