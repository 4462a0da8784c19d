"""What a Runtime does when its engine, its disk or a stored row fails, and what it leaves in memory."""

import gc
import sqlite3
import threading
import weakref

import pytest
from fakes import FakeEngine, FakeFactory, FakeFront
from patience import PATIENCE_S

from edgekv import Closed, ConversationError, Notice, Runtime, StoreError
from edgekv.conversation.worker import EngineThread
from edgekv_storage import DiskFull, Transcripts, Unwritable


class BrokenWarmUp(FakeFactory):
    """Its engine fails before the first request, once told to."""

    def __init__(self):
        super().__init__()
        self.go = threading.Event()

    def __call__(self, config, model, *, data_dir, keys):
        engine, front = super().__call__(config, model, data_dir=data_dir, keys=keys)
        engine.warm_up = self.fail
        return engine, front

    def fail(self):
        self.go.wait()
        raise RuntimeError("no kernel image")


def test_an_engine_that_fails_to_warm_up_is_told_to_everyone(open_runtime):
    """Guards send() waiting for ever on a dead engine thread: the queued, the waiting and the later are told."""
    factory = BrokenWarmUp()
    runtime = open_runtime(factory)
    chat = runtime.conversation("a")
    stream = chat.stream("one")
    outcome = []

    def forget_private():
        try:
            runtime._worker.call(lambda engine: engine.cache_use())
        except Closed as error:
            outcome.append(str(error))

    waiting = threading.Thread(target=forget_private)
    waiting.start()
    while runtime._worker._queue.qsize() < 2:
        pass
    factory.go.set()
    with pytest.raises(Closed, match="no kernel image"):
        stream.result()
    waiting.join(PATIENCE_S)
    assert "RuntimeError: no kernel image" in outcome[0]
    for call in (runtime.stats, lambda: chat.send("two"), lambda: runtime.conversation("b")):
        with pytest.raises(Closed, match="no kernel image"):
            call()
    runtime.close()
    assert factory.engine.closed


def no_memory():
    raise MemoryError


@pytest.mark.parametrize("fails", [None, lambda: 1 // 0, no_memory])
def test_close_lets_go_of_the_engine(data_dir, fails):
    """Guards memory: a closed Runtime that somebody still holds must not hold the model."""
    held = []

    def factory(config, model, *, data_dir, keys):
        engine, front = FakeEngine(), FakeFront()
        if fails:
            engine.warm_up = fails
        held.extend([weakref.ref(engine), weakref.ref(front)])
        return engine, front

    runtime = Runtime(engine_factory=factory, data_dir=data_dir)
    if not fails:
        runtime.conversation("a").send("x")
    runtime.close()
    gc.collect()
    assert [reference() for reference in held] == [None, None]
    with pytest.raises(Closed):
        runtime.stats()


def test_text_that_was_shown_is_kept_when_the_engine_fails(open_runtime):
    """Guards against a transcript without what its reader saw; the next context holds it."""
    factory = FakeFactory(error=StoreError("boom"), error_at=5)
    chat = open_runtime(factory).conversation("a")
    with pytest.raises(StoreError, match="boom"):
        chat.send("one")
    (turn,) = chat.history()
    assert (turn.answer, turn.state, turn.answer_ended) == ("hello", "stopped", False)
    factory.engine.error = None
    chat.send("two")
    text = FakeFront().tokenizer.decode(factory.engine.requests[1].token_ids, special=True)
    assert "hello|><|user\ntwo|>" in text


def test_forget_does_not_stop_the_others(open_runtime):
    """Guards the Runtime's lock: while a forget waits for the queue, other conversations open and answer."""
    factory = FakeFactory()
    runtime = open_runtime(factory)
    runtime.conversation("a").send("x")
    factory.engine.hold.clear()
    running = runtime.conversation("b").stream("slow")
    forgetting = threading.Thread(target=runtime.forget, args=("a",))
    forgetting.start()
    while not runtime._forgetting:
        pass
    opened = threading.Thread(target=runtime.conversation, args=("c",))
    opened.start()
    opened.join(PATIENCE_S)
    was_free = not opened.is_alive()
    if was_free:
        with pytest.raises(ConversationError, match="being forgotten"):
            runtime.conversation("a")
    factory.engine.hold.set()
    forgetting.join(PATIENCE_S)
    assert was_free
    assert running.result().text == "hello there"
    assert "a" not in [info.name for info in runtime.conversations()]
    assert runtime.conversation("a").history() == []


def test_nothing_is_submitted_after_retire(open_runtime, monkeypatch):
    """Guards forget against a message past the check: it is submitted before retire, and stopped, or refused."""
    factory = FakeFactory()
    runtime = open_runtime(factory)
    chat = runtime.conversation("a")
    factory.engine.hold.clear()
    inside, go_on, submit = threading.Event(), threading.Event(), EngineThread.submit

    def slow(self, *args):
        inside.set()
        go_on.wait(PATIENCE_S)
        submit(self, *args)

    monkeypatch.setattr(EngineThread, "submit", slow)
    sending = threading.Thread(target=chat.stream, args=("one",))
    sending.start()
    inside.wait(PATIENCE_S)
    retiring = threading.Thread(target=chat.retire, args=("gone",))
    retiring.start()
    retiring.join(0.1)
    assert retiring.is_alive()
    go_on.set()
    retiring.join(PATIENCE_S)
    sending.join(PATIENCE_S)
    assert not retiring.is_alive()
    assert chat.history()[0].state == "stopped"


def damage_first_turn_of_last(data_dir):
    """Flips a bit in the first turn of the newest conversation; returns the turn's id."""
    with sqlite3.connect(data_dir / "transcripts.db") as db:
        (conversation,) = db.execute("SELECT max(id) FROM conversations").fetchone()
        (turn,) = db.execute("SELECT min(id) FROM turns WHERE conversation = ?", (conversation,)).fetchone()
        (content,) = db.execute("SELECT content FROM turns WHERE id = ?", (turn,)).fetchone()
        flipped = content[:-1] + bytes([content[-1] ^ 1])
        db.execute("UPDATE turns SET content = ? WHERE id = ?", (flipped, turn))
    db.close()
    return turn


def test_a_flipped_row_harms_its_own_conversation_only(open_runtime, data_dir):
    """Guards listing and forgetting: one damaged turn must not hide the other conversations, nor stay for ever."""
    first = open_runtime()
    for name in ("good", "bad one"):
        first.conversation(name).send("x")
    first.close()
    damage_first_turn_of_last(data_dir)
    runtime = open_runtime()
    infos = {info.name: (info.num_turns, info.is_damaged) for info in runtime.conversations()}
    assert infos == {"good": (1, False), "bad one": (1, True)}
    with pytest.raises(StoreError, match=r"'bad one' is damaged: turn 0 .*edgekv forget 'bad one'"):
        runtime.conversation("bad one")
    runtime.forget("bad one")
    assert [info.name for info in runtime.conversations()] == ["good"]


@pytest.mark.parametrize("error", [DiskFull, Unwritable])
def test_a_store_that_cannot_be_opened_degrades(open_runtime, error):
    """Guards starting on a full drive: memory tiers only, said once, instead of the end of the program."""

    class Refused(FakeFactory):
        def __call__(self, config, model, *, data_dir, keys):
            if data_dir is not None:
                raise error("no room")
            return super().__call__(config, model, data_dir=data_dir, keys=keys)

    runtime = open_runtime(Refused())
    assert runtime.degraded == "no room"
    events = list(runtime.conversation(private=True).stream("x"))
    assert next(e.message for e in events if isinstance(e, Notice)) == "nothing is kept on disk: no room"
    with pytest.raises(StoreError, match="no room"):
        runtime.conversation("a")


def test_transcripts_that_cannot_be_opened_degrade(open_runtime, monkeypatch):
    """Guards the same for the transcripts; the lock is let go."""
    opening = Transcripts.open

    def full(_directory, _keys):
        raise DiskFull("the drive is full")

    monkeypatch.setattr(Transcripts, "open", full)
    runtime = open_runtime()
    assert runtime.degraded == "the drive is full"
    assert runtime.conversation(private=True).send("x").text == "hello there"
    assert runtime.conversations() == []
    monkeypatch.setattr(Transcripts, "open", opening)
    assert open_runtime().degraded is None


def test_not_durable_touches_no_directory(open_runtime, data_dir):
    """Guards a private session beside another program: no lock, no folder, no notice; names are refused."""
    factory = FakeFactory()
    runtime = open_runtime(factory, durable=False)
    events = list(runtime.conversation(private=True).stream("x"))
    assert not any(isinstance(event, Notice) for event in events)
    assert (runtime.degraded, factory.data_dir, data_dir.exists()) == (None, None, False)
    for read_only in (False, True):
        with pytest.raises(StoreError, match="keeps nothing"):
            runtime.conversation("a", read_only=read_only)


def test_lost_changes_to_the_transcripts_are_told(open_runtime, data_dir):
    """Guards acknowledged turns that a damaged journal hid: the next answer says that something is missing."""
    runtime = open_runtime()
    runtime.conversation("a").send("hello")
    runtime.close()
    db = sqlite3.connect(data_dir / "transcripts.db")
    db.execute("DELETE FROM tally")
    db.commit()
    db.close()
    notices = open_runtime().conversation("a").send("again").notices
    assert any("transcripts.db is damaged" in notice for notice in notices), notices


def test_a_store_that_refuses_to_forget_is_an_error_of_ours(open_runtime, monkeypatch):
    """Guards `except EdgeKVError`: the storage package's own error came out of forget()."""
    factory = FakeFactory()
    runtime = open_runtime(factory)
    runtime.conversation("a").send("hi")

    def refuse(_sequence_id, *, forget):
        raise Unwritable("cannot remove the segment")

    monkeypatch.setattr(factory.engine, "release", refuse)
    with pytest.raises(StoreError, match="cannot remove the segment"):
        runtime.forget("a")
