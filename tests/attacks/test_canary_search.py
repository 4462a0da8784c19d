"""Canary searches: what was said is in no byte of any file, but where encryption was turned off."""

import os
import shutil
import sqlite3

import pytest
from canaries import NAME, TEXT, forms, hits, leaf_pieces, runtime_on
from gguf_writer import write_tiny_gguf

from edgekv.config import Config
from edgekv.conversation.kept import forget_kept, kept_conversations, opened
from edgekv.conversation.unlock import Unlock
from edgekv.engine.build import load_model

WORDS = [*forms(TEXT), *forms(NAME + "." * 20), NAME.encode()]


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    path = write_tiny_gguf(tmp_path_factory.mktemp("m") / "m.gguf", num_layers=2, context=2048)
    loaded = load_model(Config(threads=1), path, with_front=False)
    yield loaded
    loaded.front.close()


def talk(runtime, name=NAME, **options):
    """Says the secret; returns every form of it, KV and answer included."""
    result = runtime.conversation(name, **options).send(TEXT, max_tokens=20)
    return [*WORDS, *leaf_pieces(runtime), result.text.encode()]


def test_an_encrypted_conversation_is_nowhere_readable(model, data_dir):
    """Guards encryption at rest: text, name, token ids and KV, while it runs and after it ended."""
    with runtime_on(model, data_dir) as runtime:
        pieces = talk(runtime)
        assert hits(data_dir, pieces) == []
    assert hits(data_dir, pieces) == []
    assert len(list(data_dir.glob("seg-*.kv"))) == 1, "there is KV on disk"
    with runtime_on(model, data_dir) as runtime:
        assert runtime.conversation(NAME).history()[0].user == TEXT
        again = runtime.conversation(NAME).send("more", max_tokens=2)
        assert again.usage.reused_tokens > 400, "and it is used"
    assert hits(data_dir, pieces) == []


def test_the_search_finds_what_is_not_encrypted(model, data_dir):
    """Guards the search itself: without encryption it finds text, name, ids and KV; after forget nothing."""
    with runtime_on(model, data_dir, encryption="off") as runtime:
        pieces = talk(runtime)
    found = {piece for _, piece in hits(data_dir, pieces)}
    assert {NAME.encode()[:24], WORDS[0][:24], WORDS[3][:24]} <= found
    assert len(found) > 10
    forget_kept(data_dir, NAME, Unlock(is_encrypted=False))
    assert hits(data_dir, pieces) == []


@pytest.mark.parametrize("encryption", ["on", "off"])
def test_a_private_chat_leaves_nothing(model, data_dir, tmp_path, encryption):
    """Guards private mode beside a kept conversation: no byte of it in any file, during and after."""
    with runtime_on(model, data_dir, encryption=encryption) as runtime:
        pieces = talk(runtime, None, private=True)
        assert list(data_dir.glob("seg-*.kv")) == []
        runtime.conversation("kept").send("another matter", max_tokens=20)
        assert len(list(data_dir.glob("seg-*.kv"))) == 1
        assert hits(data_dir, pieces) == []
    assert hits(tmp_path, pieces) == []


def test_a_forgotten_chat_leaves_nothing(model, data_dir):
    """Guards /forget with the engine running: neither the secret nor a name of its key or sequence stays."""
    with runtime_on(model, data_dir) as runtime:
        runtime.conversation("kept").send("hello", max_tokens=2)
        chat = runtime.conversation(NAME)
        pieces = talk(runtime)
        key = runtime._library.keys.find(chat.sequence_id)
        pieces += [key.secret, key.key_id, chat.sequence_id]
        assert len(list(data_dir.glob("seg-*.kv"))) == 2
        runtime.forget(NAME)
        assert len(list(data_dir.glob("seg-*.kv"))) == 1
        assert [hit for hit in hits(data_dir, pieces) if not hit[0].startswith("index.db")] == []
    assert hits(data_dir, pieces) == []
    with runtime_on(model, data_dir) as runtime:
        assert runtime.conversation("kept").history()[0].user == "hello"


def test_a_copy_made_before_cannot_be_read_after_forgetting(model, data_dir, tmp_path):
    """Guards the promise itself: sealed bytes that escaped deletion are unreadable once the key is destroyed."""
    with runtime_on(model, data_dir) as runtime:
        talk(runtime)
    saved = {path.name: path.read_bytes() for path in data_dir.iterdir() if path.name != "keys.db"}
    forget_kept(data_dir, NAME)
    for name, data in saved.items():
        (data_dir / name).write_bytes(data)
    infos = kept_conversations(data_dir)
    assert [(info.name, info.is_damaged) for info in infos] == [("#1", True)]
    with runtime_on(model, data_dir) as runtime:
        (turn,) = runtime.conversation("#1", read_only=True).history()
        assert turn.state == "damaged"
        assert runtime.conversation("other").send(TEXT, max_tokens=2).usage.reused_tokens == 0


def kill_at(patch, number):
    """Ends this process at its n-th call that may change a file."""
    count = [0]

    def dying(function):
        def call(*args, **kwargs):
            count[0] += 1
            if count[0] == number:
                os._exit(9)
            return function(*args, **kwargs)

        return call

    class Connection(sqlite3.Connection):
        def execute(self, *args):
            if not args[0].startswith(("SELECT", "PRAGMA user", "PRAGMA app", "PRAGMA data")):
                count[0] += 1
                if count[0] == number:
                    os._exit(9)
            return super().execute(*args)

    connect = sqlite3.connect
    patch.setattr(sqlite3, "connect", lambda *a, **k: connect(*a, **k, factory=Connection))
    for name in ("fsync", "fdatasync", "unlink", "rename", "ftruncate", "pwritev"):
        patch.setattr(os, name, dying(getattr(os, name)))


def test_forgetting_killed_at_any_step_is_ended_at_the_next_start(model, data_dir):
    """Guards forget against kill -9: the conversation is whole until its key is gone, then gone altogether."""
    with runtime_on(model, data_dir) as runtime:
        pieces = talk(runtime)
    whole = data_dir.rename(data_dir.with_name("whole"))
    number, finished, was_kept = 0, False, []
    while not finished:
        number += 1
        shutil.rmtree(data_dir, ignore_errors=True)
        shutil.copytree(whole, data_dir)
        pid = os.fork()
        if pid == 0:
            try:
                with pytest.MonkeyPatch.context() as patch:
                    kill_at(patch, number)
                    forget_kept(data_dir, NAME)
                os._exit(0)
            finally:
                os._exit(1)
        status = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
        assert status in (0, 9), number
        finished = status == 0
        listed = [(info.name, info.is_damaged) for info in kept_conversations(data_dir)]
        assert listed in ([(NAME, False)], []), number
        was_kept.append(bool(listed))
        with opened(data_dir, is_writable=True) as library:
            assert [info.name for info in library.infos()] == [name for name, _ in listed]
            assert library.keys.destroyed() == []
            assert library.keys.info().num_keys == len(listed)
        assert len(list(data_dir.glob("seg-*.kv"))) == len(listed), number
        if not listed:
            assert hits(data_dir, pieces) == []
    assert sorted(was_kept, reverse=True) == was_kept, "once forgotten, never back"
    assert was_kept.count(True) > 2
    assert was_kept.count(False) > 8


def test_forgetting_cut_off_behind_the_key_is_ended(model, data_dir):
    """Guards each half-done state behind the tombstone: KV there, KV gone, text gone."""
    for step in range(3):
        name = f"{NAME} {step}"
        with runtime_on(model, data_dir) as runtime:
            talk(runtime, name)
        with opened(data_dir, is_writable=True) as library:
            sequence_id = library.begin_forgetting(name)
            if step >= 1:
                for path in data_dir.glob("seg-*.kv"):
                    path.unlink()
            if step >= 2:
                library._transcripts.delete_sequence(sequence_id)
            assert library.keys.destroyed() == [sequence_id]
            assert kept_conversations(data_dir) == []
        with runtime_on(model, data_dir) as runtime:
            assert runtime.conversations() == []
            assert runtime._library.keys.destroyed() == []
        assert list(data_dir.glob("seg-*.kv")) == []
