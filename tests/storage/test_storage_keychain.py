"""The key chain: what opens it, what does not, and that no step of it can lose a key."""

from __future__ import annotations

import os
import shutil
import sqlite3
import threading
from contextlib import closing

import pytest
from keychain_fixtures import GIVEN, SECRET, use_keyring
from patience import PATIENCE_S
from storage_fixtures import OTHER, SEQUENCE

from edgekv_storage import DataDir
from edgekv_storage.errors import (
    KeysDamaged,
    KeyUnavailable,
    NoSuchConversation,
    StorageError,
    Unwritable,
    WrongCode,
    WrongPassphrase,
)
from edgekv_storage.keychain import oskeyring, passphrase
from edgekv_storage.keychain.keychain import KeyChain, look
from edgekv_storage.keychain.keytable import Wrapped
from edgekv_storage.keychain.recovery import decode_recovery, encode_recovery
from edgekv_storage.keychain.unlocking import Unlocking


@pytest.fixture(autouse=True)
def cheap(monkeypatch):
    """The shape of the real lock at a fortieth of its cost."""
    cost = {"kdf": "argon2id", "iterations": 1, "lanes": 1, "memory_kib": 8 << 10}
    monkeypatch.setattr(passphrase, "_ARGON2", cost)


@pytest.fixture
def directory(data_dir):
    with DataDir.open(data_dir) as directory:
        yield directory


@pytest.fixture(params=["file", "passphrase", "keyring"])
def protected(request, monkeypatch, tmp_path):
    """(kind, what unlocks it)."""
    use_keyring(monkeypatch, tmp_path)
    return request.param, GIVEN if request.param == "passphrase" else Unlocking()


def changed(path):
    """Everything below `path`, to see that nothing was."""
    return {file: file.read_bytes() for file in sorted(path.rglob("*")) if file.is_file()}


def test_keys_come_back_and_differ(directory, protected):
    """Guards the round trip through each protection, and two conversations sharing one key."""
    kind, unlocking = protected
    chain = KeyChain.open(directory, protection=kind, unlocking=unlocking)
    assert chain.find(SEQUENCE) is None
    key, other = chain.need(SEQUENCE), chain.need(OTHER)
    assert chain.need(SEQUENCE) is key
    assert key.secret != other.secret
    assert key.key_id != other.key_id
    again = KeyChain.open(directory, unlocking=unlocking)
    assert (again.find(SEQUENCE).secret, again.find(SEQUENCE).key_id) == (key.secret, key.key_id)
    assert (again.kind, again.info().num_keys, again.info().generation) == (kind, 2, 1)


def test_no_secret_lies_in_keys_db_or_in_a_repr(directory, protected):
    """Guards wrapping: neither the conversation's key, nor the master key, nor the passphrase in the clear."""
    kind, unlocking = protected
    chain = KeyChain.open(directory, protection=kind, unlocking=unlocking)
    key = chain.need(SEQUENCE)
    data = (directory.path / "keys.db").read_bytes()
    assert key.secret not in data
    assert decode_recovery(chain.export_recovery()) not in data
    assert SECRET.encode() not in data
    for shown in (repr(chain), repr(key), repr(unlocking), str(vars(directory))):
        assert key.secret.hex() not in shown
        assert SECRET not in shown
    assert {path.stat().st_mode & 0o777 for path in directory.path.iterdir()} == {0o600}


def test_a_wrong_or_missing_passphrase_changes_nothing(directory):
    """Guards the wrong passphrase: one clear error, a person gets three tries, a program one."""
    KeyChain.open(directory, protection="passphrase", unlocking=GIVEN).need(SEQUENCE)
    before = changed(directory.path)
    asked = []

    def ask(question):
        asked.append(question)
        return "wrong"

    for given in ("wrong", SECRET + " ", ask):
        with pytest.raises(WrongPassphrase, match="wrong passphrase"):
            KeyChain.open(directory, unlocking=Unlocking(given))
    assert len(asked) == 3
    with pytest.raises(KeyUnavailable, match="EDGEKV_PASSPHRASE"):
        KeyChain.open(directory)
    assert changed(directory.path) == before
    answers = iter(["wrong", SECRET])
    assert KeyChain.open(directory, unlocking=Unlocking(lambda _: next(answers))).find(SEQUENCE)


def test_a_new_passphrase_is_asked_twice(directory):
    """Guards a slip of the finger that would lock a person out for good; nothing is made then."""
    answers = iter(["one", "two"])
    with pytest.raises(KeyUnavailable, match="differ"):
        KeyChain.open(directory, protection="passphrase", unlocking=Unlocking(lambda _: next(answers)))
    with pytest.raises(KeyUnavailable, match="empty"):
        KeyChain.open(directory, protection="passphrase", unlocking=Unlocking(""))
    assert KeyChain.open(directory, protection="passphrase", unlocking=Unlocking(lambda _: "e\u0301")).kind
    assert KeyChain.open(directory, unlocking=Unlocking("\u00e9")), "the same letter, typed otherwise"


def test_auto_takes_what_is_there_and_warns_of_a_file(directory, monkeypatch, tmp_path):
    """Guards the order: a given passphrase, the keyring, then a file with one plain warning."""
    chain = KeyChain.open(directory)
    assert chain.kind == "file"
    assert "their key lies in a file" in chain.notices[0]
    assert KeyChain.open(directory).notices == []
    use_keyring(monkeypatch, tmp_path)
    for name, unlocking, kind in (("a", Unlocking(), "keyring"), ("b", GIVEN, "passphrase")):
        with DataDir.open(tmp_path / name) as other:
            assert KeyChain.open(other, unlocking=unlocking).kind == kind
    with pytest.raises(KeyUnavailable, match="edgekv key rotate"):
        KeyChain.open(directory, protection="keyring")


def test_a_keyring_that_hangs_or_fails_costs_seconds_not_for_ever(directory, monkeypatch, tmp_path):
    """Guards a locked D-Bus: the start goes on with a key file; an existing chain says what to do."""
    backend, over = use_keyring(monkeypatch, tmp_path), threading.Event()
    with DataDir.open(tmp_path / "ringed") as ringed:
        KeyChain.open(ringed)
        monkeypatch.setattr(oskeyring, "LIMIT_S", 0.05)
        monkeypatch.setattr(oskeyring, "PROBE_LIMIT_S", 0.05)
        monkeypatch.setattr(type(backend), "get_password", lambda *_: over.wait(PATIENCE_S))
        with pytest.raises(KeyUnavailable, match="did not answer"):
            KeyChain.open(ringed)
        monkeypatch.setattr("keyring.get_keyring", lambda: over.wait(PATIENCE_S))
        assert KeyChain.open(directory).kind == "file"
        monkeypatch.setattr("keyring.get_keyring", lambda: 1 / 0)
        monkeypatch.setattr(oskeyring, "LIMIT_S", PATIENCE_S)
        monkeypatch.setattr(oskeyring, "PROBE_LIMIT_S", PATIENCE_S)
        with pytest.raises(KeyUnavailable, match="ZeroDivisionError"):
            KeyChain.open(ringed)
    over.set()


def test_destroyed_keys_are_gone_for_good(directory):
    """Guards forget: unreadable at once, remembered until the data is gone, never made again in between."""
    chain = KeyChain.open(directory)
    key = chain.need(SEQUENCE)
    wrapped = chain._table.row(SEQUENCE).wrapped
    chain.need(OTHER)
    chain.destroy(SEQUENCE)
    for current in (chain, KeyChain.open(directory)):
        assert (current.find(SEQUENCE), current.destroyed()) == (None, [SEQUENCE])
        with pytest.raises(NoSuchConversation):
            current.need(SEQUENCE)
    for file, data in changed(directory.path).items():
        assert wrapped[12:] not in data, file
        assert key.key_id not in data, file
    chain.finish(SEQUENCE)
    assert chain.destroyed() == []
    assert SEQUENCE not in (directory.path / "keys.db").read_bytes()
    assert chain.need(SEQUENCE).secret != key.secret
    assert chain.find(OTHER)


def test_rotation_makes_the_old_key_useless(directory, protected):
    """Guards rotate: every conversation opens as before, the old secret opens nothing and is removed."""
    kind, unlocking = protected
    chain = KeyChain.open(directory)
    secrets = [chain.need(sequence).secret for sequence in (SEQUENCE, OTHER)]
    old = chain.export_recovery()
    chain.rotate(kind, unlocking)
    assert chain.info().recovery_told is None
    again = KeyChain.open(directory, unlocking=unlocking)
    assert [again.find(sequence).secret for sequence in (SEQUENCE, OTHER)] == secrets
    assert (again.kind, again.info().generation) == (kind, 2)
    with pytest.raises(WrongCode, match="earlier key"):
        KeyChain.recover(directory, old)
    assert not (directory.path / "master-1.key").exists()
    again.rotate(unlocking=unlocking)
    assert (again.kind, again.info().generation) == (kind, 3)


def test_a_recovery_code_is_understood_however_it_is_typed(directory, protected, tmp_path):
    """Guards the way back from a lost keyring, key file or passphrase, and slips of the pen."""
    kind, unlocking = protected
    chain = KeyChain.open(directory, protection=kind, unlocking=unlocking)
    secret = chain.need(SEQUENCE).secret
    assert chain.info().recovery_told is None
    code = chain.export_recovery()
    assert chain.info().recovery_told is not None
    (tmp_path / "keyring.json").unlink(missing_ok=True)
    (directory.path / "master-1.key").unlink(missing_ok=True)
    typed = f"  {code.lower().replace('-', '  ').replace('0', 'o').replace('1', 'l')}\n"
    new = KeyChain.recover(directory, typed, protection="passphrase", unlocking=Unlocking("new"))
    assert new.find(SEQUENCE).secret == secret
    assert KeyChain.open(directory, unlocking=Unlocking("new")).find(SEQUENCE).secret == secret
    assert new.export_recovery() == code
    before = changed(directory.path)
    swapped = (
        code[1] + code[0] + code[2:] if code[0] != code[1] else code[:-1] + ("A" if code[-1] != "A" else "B")
    )
    for wrong, said in ((swapped, "slip"), (code[:-1], "55"), (code[:-1] + "U", "'U'"), ("", "has 0")):
        with pytest.raises(WrongCode, match=said):
            KeyChain.recover(directory, wrong)
    with pytest.raises(WrongCode, match="not of"):
        KeyChain.recover(directory, encode_recovery(bytes(32)))
    assert changed(directory.path) == before


def kill_at(monkeypatch, number):
    """Ends this process at its n-th call that may change something outside of it."""
    count = [0]

    class Connection(sqlite3.Connection):
        def execute(self, *args):
            if not args[0].startswith(("SELECT", "PRAGMA", "ROLLBACK")):
                count[0] += 1
                if count[0] == number:
                    os._exit(9)
            return super().execute(*args)

    connect = sqlite3.connect
    monkeypatch.setattr(sqlite3, "connect", lambda *a, **k: connect(*a, **k, factory=Connection))
    for name in ("open", "write", "fsync", "pwrite", "unlink", "close"):
        function = getattr(os, name)

        def killing(*args, function=function, **kwargs):
            count[0] += 1
            if count[0] == number:
                os._exit(9)
            return function(*args, **kwargs)

        monkeypatch.setattr(os, name, killing)


@pytest.mark.parametrize("kind", ["file", "passphrase", "keyring"])
def test_rotation_killed_at_any_step_leaves_a_chain_that_opens(copy, kind, monkeypatch, tmp_path):
    """Guards the change of master keys: a child dies at every call in turn; each time all keys are there."""
    use_keyring(monkeypatch, tmp_path)
    with DataDir.open(copy) as directory:
        chain = KeyChain.open(directory, protection=kind, unlocking=GIVEN)
        secret = chain.need(SEQUENCE).secret
    number, finished = 0, False
    while not finished:
        number += 1
        pid = os.fork()
        if pid == 0:
            try:
                with DataDir.open(copy) as directory, pytest.MonkeyPatch.context() as patch:
                    chain = KeyChain.open(directory, unlocking=GIVEN)
                    kill_at(patch, number)
                    chain.rotate(unlocking=GIVEN)
                os._exit(0)
            finally:
                os._exit(1)
        status = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
        assert status in (0, 9)
        finished = status == 0
        with DataDir.open(copy) as directory:
            chain = KeyChain.open(directory, unlocking=GIVEN)
            assert chain.find(SEQUENCE).secret == secret, number
            assert chain._table.strays() == []
            files = sorted(path.name for path in copy.glob("master-*"))
            assert files == ([f"master-{chain.info().generation}.key"] if kind == "file" else [])
    assert number > 10


def test_a_first_start_killed_at_any_step_is_begun_again(copy):
    """Guards the making of keys.db: half of it must neither be believed nor stand in the way."""
    number, finished = 0, False
    while not finished:
        number += 1
        shutil.rmtree(copy, ignore_errors=True)
        DataDir.open(copy).close()
        pid = os.fork()
        if pid == 0:
            try:
                with DataDir.open(copy) as directory, pytest.MonkeyPatch.context() as patch:
                    kill_at(patch, number)
                    KeyChain.open(directory, protection="file")
                os._exit(0)
            finally:
                os._exit(1)
        status = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
        assert status in (0, 9)
        finished = status == 0
        with DataDir.open(copy) as directory:
            assert KeyChain.open(directory).need(SEQUENCE)
            assert len(list(copy.glob("master-*"))) == 1
    assert number > 10


def test_a_lost_keys_db_is_told_and_not_replaced(directory, data_dir):
    """Guards against a silent new key over old conversations, whichever file is left of them."""
    for name, data in (("transcripts.db", b"x"), ("seg-1-0.kv", b"")):
        (data_dir / name).write_bytes(data)
        with pytest.raises(KeysDamaged, match=r"keys\.db is missing"):
            KeyChain.open(directory)
        assert not (data_dir / "keys.db").exists()
        (data_dir / name).unlink()
    (data_dir / "transcripts.db").touch()
    assert KeyChain.open(directory).kind == "file"


@pytest.mark.parametrize(
    ("harm", "error", "message"),
    [
        (lambda path: path.write_bytes(b"not a database" * 400), KeysDamaged, "restore"),
        (lambda path: path.write_bytes(path.read_bytes()[:3000]), KeysDamaged, "restore"),
        (lambda path: (path.unlink(), path.symlink_to("/etc/passwd")), Unwritable, "cannot open"),
        (lambda path: (path.unlink(), path.mkdir()), KeysDamaged, "ordinary"),
        (lambda path: (path.unlink(), os.mkfifo(path)), KeysDamaged, "ordinary"),
        ("PRAGMA user_version = 9", KeysDamaged, "format 9"),
        ("PRAGMA application_id = 7", KeysDamaged, "not made by edgekv"),
        ("DROP TABLE master", KeysDamaged, "damaged"),
        ("DELETE FROM master", KeysDamaged, "no master key"),
        ("DELETE FROM about", KeysDamaged, "no id"),
        ("UPDATE about SET store_id = x'00'", KeyUnavailable, "another data directory"),
        ("UPDATE master SET kind = 'magic'", KeysDamaged, "magic"),
        ("UPDATE master SET parameters = '[]'", KeysDamaged, "damaged"),
        ("UPDATE master SET parameters = '{\"path\": 7}'", KeysDamaged, "damaged"),
        ("UPDATE master SET proof = x'00'", KeyUnavailable, "another data directory"),
        ("UPDATE master SET generation = 'x'", KeysDamaged, "damaged"),
    ],
)
def test_a_damaged_or_planted_keys_db_is_one_clear_error(directory, data_dir, harm, error, message):
    """Guards bad input: an error that says what to do, and whatever lies there stays as it is."""
    KeyChain.open(directory).need(SEQUENCE)
    path = data_dir / "keys.db"
    if isinstance(harm, str):
        with closing(sqlite3.connect(path)) as db:
            db.execute(harm)
            db.commit()
    else:
        harm(path)
    before = changed(data_dir)
    with pytest.raises(error, match=message) as caught:
        KeyChain.open(directory)
    assert "\n" not in str(caught.value)
    assert changed(data_dir) == before


def test_planted_costs_are_refused(directory, data_dir):
    """Guards the start against a file that asks for 100 GB of memory or a year of hashing."""
    KeyChain.open(directory, protection="passphrase", unlocking=GIVEN)
    for name, value in (("memory_kib", 100 << 20), ("iterations", 1 << 30), ("lanes", 0)):
        with closing(sqlite3.connect(data_dir / "keys.db")) as db:
            db.execute("UPDATE master SET parameters = json_set(parameters, ?, ?)", (f"$.{name}", value))
            db.commit()
        with pytest.raises(KeysDamaged, match="tampered"):
            KeyChain.open(directory, unlocking=GIVEN)


def test_key_files_that_cannot_be_trusted(directory, data_dir, tmp_path):
    """Guards the key file: missing, foreign, damaged, open to others, a link, a pipe, moved elsewhere."""
    KeyChain.open(directory, protection="file").need(SEQUENCE)
    path = data_dir / "master-1.key"
    good = path.read_bytes()
    with DataDir.open(tmp_path / "other") as other:
        KeyChain.open(other)
    for harm, message in (
        (lambda: None, "missing.*edgekv key recover"),
        (lambda: path.symlink_to(tmp_path / "other" / "master-1.key"), "cannot be read"),
        (lambda: os.mkfifo(path), "ordinary"),
        (lambda: shutil.copy(tmp_path / "other" / "master-1.key", path), "another data directory"),
        (lambda: path.write_bytes(good[:-9]), "damaged|slip"),
        (lambda: path.write_bytes(b"\xff" * 9000), "damaged"),
    ):
        path.unlink(missing_ok=True)
        harm()
        if path.is_file() and not path.is_symlink():
            path.chmod(0o600)
        with pytest.raises(KeyUnavailable, match=message):
            KeyChain.open(directory)
    path.unlink()
    path.write_bytes(good)
    path.chmod(0o640)
    with pytest.raises(KeyUnavailable, match="chmod 600"):
        KeyChain.open(directory)
    path.chmod(0o600)
    moved = path.rename(tmp_path / "elsewhere.key")
    assert KeyChain.open(directory, unlocking=Unlocking(key_file=moved)).find(SEQUENCE)


def test_a_key_file_elsewhere_survives_rotation(directory, data_dir, tmp_path):
    """Guards --key-file: nothing of the key beside the data, before and after a rotation."""
    elsewhere = tmp_path / "stick" / "edgekv.key"
    elsewhere.parent.mkdir()
    unlocking = Unlocking(key_file=elsewhere)
    chain = KeyChain.open(directory, unlocking=unlocking)
    secret = chain.need(SEQUENCE).secret
    chain.rotate(unlocking=unlocking)
    assert KeyChain.open(directory, unlocking=unlocking).find(SEQUENCE).secret == secret
    assert KeyChain.open(directory).find(SEQUENCE).secret == secret
    assert list(data_dir.glob("*.key")) == []
    assert len(list(elsewhere.parent.iterdir())) == 1


def test_a_damaged_key_is_told_and_the_others_open(directory, data_dir):
    """Guards one flipped key: its conversation is named, no new key is laid over its data."""
    chain = KeyChain.open(directory)
    chain.need(SEQUENCE)
    good = chain.need(OTHER).secret
    with closing(sqlite3.connect(data_dir / "keys.db")) as db:
        db.execute("UPDATE keys SET wrapped = x'00' || substr(wrapped, 2) WHERE sequence_id = ?", (SEQUENCE,))
        db.commit()
    chain = KeyChain.open(directory)
    assert chain.find(SEQUENCE) is None
    assert SEQUENCE.hex()[:8] in chain.notices[0]
    with pytest.raises(KeysDamaged):
        chain.need(SEQUENCE)
    assert chain.find(OTHER).secret == good


def test_any_flipped_byte_of_keys_db_is_detected_or_harmless(directory, data_dir, tmp_path):
    """Guards the whole file: no flip ever yields a wrong key."""
    chain = KeyChain.open(directory)
    secret = chain.need(SEQUENCE).secret
    data = (data_dir / "keys.db").read_bytes()
    step = 131  # prime, so that every column of the pages is met
    for at in range(0, len(data), step):
        flipped = bytearray(data)
        flipped[at] ^= 1 << at % 8
        (data_dir / "keys.db").write_bytes(flipped)
        try:
            found = KeyChain.open(directory).find(SEQUENCE)
        except StorageError:
            continue
        assert found is None or found.secret == secret, at


def test_a_reader_beside_the_owner_sees_new_keys_and_writes_none(directory, data_dir):
    """Guards `edgekv conversations` while a chat runs."""
    chain = KeyChain.open(directory)
    reader = KeyChain.open(DataDir.open_read_only(data_dir))
    key = chain.need(SEQUENCE)
    assert reader.find(SEQUENCE).secret == key.secret
    with pytest.raises(Unwritable):
        reader.need(OTHER)


def test_a_reader_after_a_writer_killed_in_its_commit(directory, data_dir):
    """Guards `edgekv conversations` after kill -9: half a transaction is undone, not reported as damage."""
    chain = KeyChain.open(directory)
    secret = chain.need(SEQUENCE).secret
    with chain._table._transaction() as db:
        rows = [Wrapped(os.urandom(16), b"i" * 16, b"w" * 60) for _ in range(500)]
        db.executemany("INSERT INTO keys VALUES (?,?,?)", rows)
    pid = os.fork()
    if pid == 0:
        db = sqlite3.connect(data_dir / "keys.db", isolation_level=None)
        db.execute("PRAGMA cache_size = 1")
        db.execute("BEGIN IMMEDIATE")
        db.execute("UPDATE keys SET wrapped = zeroblob(500)")
        os._exit(9)
    os.waitpid(pid, 0)
    assert (data_dir / "keys.db-journal").stat().st_size > 0
    reader = KeyChain.open(DataDir.open_read_only(data_dir))
    assert reader.find(SEQUENCE).secret == secret


def test_looking_needs_no_key_and_changes_nothing(directory, data_dir):
    """Guards the doctor: it describes a locked directory."""
    assert look(data_dir) is None
    KeyChain.open(directory, protection="passphrase", unlocking=GIVEN).need(SEQUENCE)
    before = changed(data_dir)
    info = look(data_dir)
    assert (info.kind, info.num_keys, info.recovery_told, info.key_file) == ("passphrase", 1, None, None)
    assert changed(data_dir) == before


def test_a_full_drive_leaves_the_old_key(directory, data_dir, monkeypatch):
    """Guards ENOSPC while rotating: an error, and the chain opens as before."""
    chain = KeyChain.open(directory)
    secret = chain.need(SEQUENCE).secret

    def full(*_):
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(os, "write", full)
        with pytest.raises(KeyUnavailable, match="No space"):
            chain.rotate()
    assert chain.find(SEQUENCE).secret == secret
    again = KeyChain.open(directory)
    assert (again.find(SEQUENCE).secret, again.info().generation) == (secret, 1)
    again.rotate()
    assert KeyChain.open(directory).find(SEQUENCE).secret == secret
