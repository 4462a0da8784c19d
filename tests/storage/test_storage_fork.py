"""A child made by fork has the parent's store in its hands: it must not write with it, read with it, nor hang."""

from __future__ import annotations

import os
import threading
from typing import TYPE_CHECKING

import pytest
from patience import PATIENCE_S
from storage_fixtures import NAMESPACE, OTHER, SEQUENCE, TINY, Model, open_store, segments_in

from edgekv_storage import DataDir, KeyChain, StoreClosed, Transcripts

if TYPE_CHECKING:
    from collections.abc import Callable


def _in_child(work: Callable[[], object]) -> str:
    """What became of it in a forked child: the name of its exception, its result, or that it hung."""
    reading, writing = os.pipe()
    pid = os.fork()
    if pid == 0:
        found = ["it hung"]

        def run() -> None:
            try:
                found[0] = repr(work())
            except BaseException as error:
                found[0] = type(error).__name__

        thread = threading.Thread(target=run, daemon=True)
        thread.start()
        thread.join(PATIENCE_S)
        os.write(writing, found[0].encode())
        os._exit(0)
    os.close(writing)
    os.waitpid(pid, 0)
    with os.fdopen(reading) as pipe:
        return pipe.read()


@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
def test_a_child_neither_writes_nor_reads_nor_hangs(data_dir, encryption):
    """Guards nonces: a child's append and the parent's encrypted two texts with one nonce, and one was lost."""
    with open_store(data_dir) as store:
        model = Model(TINY)
        places = model.append(store, 3)
        store.flush()
        before = segments_in(data_dir)[0].read_bytes()
        works: list[Callable[[], object]] = [
            lambda: model.append(store, 1),
            store.flush,
            lambda: store.forget(SEQUENCE),
            lambda: store.evict(0),
            lambda: store.make_room(1),
            store.tidy,
            lambda: model.find(store),
            lambda: model.read(store, places),
            lambda: store.provenances(places),
            lambda: store.read_section(places[0], 1),
            lambda: store.leaf_keys(SEQUENCE, NAMESPACE, model.ids),
            lambda: store.stored_paths(SEQUENCE, NAMESPACE),
            lambda: store.note_damage(places, []),
            store.check,
        ]
        with store._write_lock, store._flush_lock, store._catalog.lock:  # as another thread may at a fork
            assert [_in_child(work) for work in works] == [StoreClosed.__name__] * len(works)
            assert _in_child(store.close) == "None"
        assert segments_in(data_dir)[0].read_bytes() == before
        model.append(store, 2)
        assert model.read(store, model.find(store)) == (15, 0)
        assert store.check() == []


@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
def test_a_child_writes_no_turn(data_dir):
    """Guards transcripts: SQLite forbids a connection in two processes, and a child's turn was acknowledged."""
    with DataDir.open(data_dir) as directory, Transcripts.open(directory) as transcripts:
        chat = transcripts.create_conversation("trip", SEQUENCE)
        with transcripts._lock:
            assert _in_child(lambda: transcripts.append_turn(chat.id, None, b"child")) == "StoreClosed"
            assert _in_child(lambda: transcripts.turns(chat.id)) == "StoreClosed"
            assert _in_child(transcripts.close) == "None"
        transcripts.append_turn(chat.id, None, b"parent")
        assert [turn.blob for turn in transcripts.turns(chat.id)] == [b"parent"]


@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
def test_a_child_touches_no_key(data_dir):
    """Guards keys: a child destroyed a key that the parent went on sealing with, so a restart lost the text."""
    with DataDir.open(data_dir) as directory:
        keys = KeyChain.open(directory, protection="file")
        keys.need(SEQUENCE)
        before = (data_dir / "keys.db").read_bytes()
        works: list[Callable[[], object]] = [
            lambda: keys.find(SEQUENCE),
            lambda: keys.need(OTHER),
            lambda: keys.destroy(SEQUENCE),
            lambda: keys.finish(SEQUENCE),
            lambda: keys.rotate("file"),
        ]
        with keys._lock:
            assert [_in_child(work) for work in works] == [StoreClosed.__name__] * len(works)
        assert (data_dir / "keys.db").read_bytes() == before
        keys.need(OTHER)
