"""`edgekv key ...` and encryption as a person meets them: codes, passphrases, what is refused."""

import json
import os
import pty
import select
import shutil
import sqlite3
from contextlib import closing

from patience import PATIENCE_S

from edgekv.config import Config
from edgekv.conversation.master import describe, export_code, rotate
from edgekv.conversation.unlock import Unlock
from edgekv_storage import DataDir

SECRET = {"EDGEKV_PASSPHRASE": "correct horse"}


def names(edgekv, **options):
    return [
        info["name"]
        for info in json.loads(edgekv("conversations", "--json", **options).stdout)["conversations"]
    ]


def test_export_recover_rotate(edgekv, data_dir):
    """Guards the whole way: a code is shown, the key is lost, the code brings it back, a rotation ends it."""
    first = edgekv("run", "hi", "-c", "a")
    assert "their key lies in a file" in first.stderr
    refused = edgekv("key", "export")
    assert (refused.returncode, refused.stdout) == (2, "")
    assert "--yes" in refused.stderr
    code = edgekv("key", "export", "--yes").stdout.strip()
    (data_dir / "master-1.key").unlink()
    lost = edgekv("conversations")
    assert (lost.returncode, lost.stdout) == (1, "")
    assert "edgekv key recover" in lost.stderr
    done = edgekv("key", "recover", stdin=f"{code.lower()}\n")
    assert (done.returncode, done.stdout) == (0, ""), done.stderr
    assert names(edgekv) == ["a"]
    done = edgekv("key", "rotate", "--json", "--key-protection", "passphrase", env=SECRET)
    assert json.loads(done.stdout) == {"rotated": True, "protection": "passphrase", "notices": []}
    assert "EDGEKV_PASSPHRASE" in edgekv("conversations").stderr
    assert "earlier key" in edgekv("key", "recover", stdin=f"{code}\n").stderr
    new = edgekv("key", "rotate", env=SECRET | {"EDGEKV_NEW_PASSPHRASE": "battery staple"})
    assert new.returncode == 0, new.stderr
    assert names(edgekv, env={"EDGEKV_PASSPHRASE": "battery staple"}) == ["a"]
    assert "wrong passphrase" in edgekv("conversations", env=SECRET).stderr


def test_wrong_uses_are_one_line_and_change_nothing(edgekv, data_dir, tmp_path):
    """Guards bad input at the keys: each one line, an exit code, no new directory, no new key."""
    for args in (["key", "export", "--yes"], ["key", "rotate"], ["key", "recover"]):
        done = edgekv(*args, stdin="x\n")
        assert (done.returncode, done.stderr.count("\n")) == (1, 1), done.stderr
        assert not data_dir.exists()
    edgekv("run", "hi", "-c", "a")
    for args, message in (
        (["run", "x", "-c", "b", "--encryption", "off"], "is encrypted"),
        (["run", "x", "-c", "b", "--key-protection", "passphrase"], "edgekv key rotate"),
        (["run", "x", "-c", "b", "--key-protection", "magic"], "auto|keyring|passphrase|file"),
        (["key", "rotate", "--key-protection", "keyring"], "none is running"),
    ):
        done = edgekv(*args)
        assert done.returncode != 0
        assert message in done.stderr
        assert done.stderr.count("\n") == 1
    (tmp_path / "edgekv.toml").write_text('passphrase = "x"\n')
    done = edgekv("conversations", "--config", str(tmp_path / "edgekv.toml"))
    assert (done.returncode, "does not belong" in done.stderr) == (2, True)
    (data_dir / "keys.db").rename(tmp_path / "keys.db")
    for args in (["run", "x", "-c", "b"], ["conversations"]):
        assert not (data_dir / "keys.db").exists()
        done = edgekv(*args)
        assert "keys.db is missing" in done.stderr
    shutil.copy(tmp_path / "keys.db", data_dir)
    assert names(edgekv) == ["a"]


def test_without_encryption_it_works_and_stays_so(edgekv, data_dir):
    """Guards the option: plain data stays plain, and is not taken for lost keys without a word."""
    assert edgekv("run", "hi", "-c", "a", "--encryption", "off").stderr == ""
    assert not (data_dir / "keys.db").exists()
    assert names(edgekv, env={"EDGEKV_ENCRYPTION": "off"}) == ["a"]
    done = edgekv("run", "hi", "-c", "a")
    assert (done.returncode, "--encryption off" in done.stderr) == (1, True)
    assert not (data_dir / "keys.db").exists()


def test_what_protects_the_data_is_told(data_dir):
    """Guards the doctor's lines: protection, its limits, and whether a recovery code was ever shown."""

    def told(**options):
        return {line.name: line for line in describe(Config(data_dir=data_dir, **options))}

    unlock = Unlock(passphrase="correct horse")
    assert "not there yet" in told()["keys"].value
    with DataDir.open(data_dir) as directory:
        unlock.open(directory)
    assert told()["keys"].value == "passphrase"
    assert "memory or swap" in told()["encryption"].why
    assert (told()["recovery_code"].value, told()["recovery_code"].is_fine) == ("never shown", False)
    export_code(data_dir, unlock)
    assert told()["recovery_code"].value.startswith("shown on ")
    rotate(data_dir, unlock, "file", None)
    assert told()["keys"].value.endswith("master-2.key")
    assert not told()["keys"].is_fine
    assert told()["recovery_code"].value == "never shown", "the old code is useless"
    assert told(encryption="off")["encryption"].value == "off"


def test_a_person_is_asked_unseen(edgekv, data_dir):
    """Guards the prompt: on a terminal the passphrase is asked for, twice for a new one, and never echoed."""

    def type_into(args, *lines):
        leader, follower = pty.openpty()
        child = edgekv(*args, start=True, terminal=follower)
        os.close(follower)
        seen, fresh = b"", b""
        waiting = list(lines)
        while select.select([leader], [], [], PATIENCE_S)[0]:
            try:
                part = os.read(leader, 1024)
            except OSError:  # the terminal's other end was closed
                break
            seen, fresh = seen + part, fresh + part
            if waiting and fresh.endswith(b": "):
                os.write(leader, waiting.pop(0).encode() + b"\n")
                fresh = b""
        os.close(leader)
        return child.wait(PATIENCE_S), seen.decode()

    code, seen = type_into(["run", "hi", "-c", "a", "--key-protection", "passphrase"], "hunter2", "hunter2")
    assert (code, "hello there" in seen, "hunter2" in seen) == (0, True, False), seen
    code, seen = type_into(["conversations"], "wrong", "hunter2")
    assert (code, "(fake)" in seen, "hunter2" in seen) == (0, True, False), seen


def test_a_new_passphrase_that_nothing_uses_is_refused(edgekv, data_dir):
    """Guards EDGEKV_NEW_PASSPHRASE: `key rotate` ignored it under a key file, and the person believed in it."""
    edgekv("run", "hi", "-c", "a")
    done = edgekv("key", "rotate", env={"EDGEKV_NEW_PASSPHRASE": "battery staple"})
    assert (done.returncode, done.stderr.count("\n")) == (2, 1), done.stderr
    assert "--key-protection passphrase" in done.stderr
    assert (data_dir / "master-1.key").exists(), "nothing was changed"


def test_a_wrong_code_makes_nothing_in_a_foreign_folder(edgekv, data_dir):
    """Guards `key recover` with a wrong --data-dir: it left LOCK and meta.json there."""
    data_dir.mkdir()
    (data_dir / "notes.txt").write_text("mine")
    done = edgekv("key", "recover", stdin="x\n")
    assert (done.returncode, "has no keys.db" in done.stderr) == (1, True)
    assert [path.name for path in data_dir.iterdir()] == ["notes.txt"]


def test_an_old_key_file_that_stays_is_told(edgekv, data_dir):
    """Guards rotate: the old key file could not be removed, and nobody was told."""
    edgekv("run", "hi", "-c", "a")
    (data_dir / "master-1.key").chmod(0o600)
    with closing(sqlite3.connect(data_dir / "keys.db")) as db, db:
        db.execute("INSERT INTO strays VALUES (9, 'file', ?)", (json.dumps({"path": "x" * 300}),))
    done = edgekv("key", "rotate", "--json")
    assert done.returncode == 0, done.stderr
    (notice,) = json.loads(done.stdout)["notices"]
    assert "an earlier master key could not be removed" in notice
    assert "x" * 300 in notice
