"""The Runtime around its conversations: threads, closing, forks, locks, other models, forgetting."""

import gc
import os
import subprocess
import sys
import threading
import time
import weakref

import pytest
from fakes import FakeFactory, FakeFront
from patience import Held

from edgekv import (
    Cancelled,
    Closed,
    ConversationError,
    ModelLoadError,
    Notice,
    Runtime,
    StoreError,
)
from edgekv.conversation.worker import NICENESS


def test_close_frees_everything_and_refuses_later_calls(open_runtime):
    """Guards leaks: no thread, no engine, no lock remains; a later call says what to do."""
    factory = FakeFactory()
    held = Held()
    runtime = open_runtime(factory)
    chat = runtime.conversation("a")
    chat.send("one")
    runtime.close()
    runtime.close()
    assert not held.new_threads()
    assert factory.engine.closed
    for call in (lambda: chat.send("two"), runtime.stats, lambda: runtime.conversation("b")):
        with pytest.raises(Closed, match="open a new one"):
            call()
    open_runtime()


def test_close_keeps_what_is_being_generated(open_runtime):
    """Guards closing an application in the middle of an answer: the partial text is committed."""
    runtime = open_runtime(FakeFactory(answer="x" * 4000, token_s=0.01))
    stream = runtime.conversation("a").stream("one", max_tokens=4000)
    while "TextDelta" not in type(next(stream)).__name__:
        pass
    runtime.close()
    with pytest.raises(Cancelled):
        stream.result()
    (turn,) = open_runtime().conversation("a").history()
    assert turn.state == "stopped"
    assert turn.answer


def test_a_runtime_nobody_closed_ends_when_it_is_collected(data_dir):
    """Guards against engine threads that live for ever."""
    factory = FakeFactory()
    runtime = Runtime(engine_factory=factory, data_dir=data_dir)
    gone = weakref.ref(runtime)
    del runtime
    gc.collect()
    assert gone() is None
    assert factory.engine.closed


def test_the_interpreter_ends_with_an_open_runtime(data_dir):
    """Guards against a program that hangs at exit because it forgot close()."""
    code = (
        "import sys; sys.path.insert(0, 'tests')\n"
        "from fakes import FakeFactory; from edgekv import Runtime\n"
        f"rt = Runtime(engine_factory=FakeFactory(answer='x' * 9000, token_s=0.01), data_dir={str(data_dir)!r})\n"
        "s = rt.conversation('a').stream('hi', max_tokens=4000); next(s); next(s)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=120, check=False
    )
    assert (done.returncode, done.stderr) == (0, "")


def test_a_fork_is_refused(open_runtime):
    """Guards fork: the child has no engine thread; it must get an error, not hang."""
    chat = open_runtime().conversation("a")
    pid = os.fork()
    if pid == 0:
        try:
            chat.send("x")
        except Closed as error:
            os._exit(42 if "fork" in str(error) else 1)
        os._exit(2)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 42
    assert chat.send("x").text == "hello there"


def test_failing_to_load_raises_and_leaves_nothing(open_runtime):
    """Guards construction: the loader's own error comes out, and the data directory is free again."""

    def broken(config, model, *, data_dir, keys):
        raise ModelLoadError("no such model")

    held = Held()
    with pytest.raises(ModelLoadError, match="no such model"):
        open_runtime(broken)
    assert not held.new_threads()
    open_runtime()


def test_many_threads(open_runtime):
    """Guards against answers that reach the wrong reader."""
    factory = FakeFactory(answer="abc" * 20)
    runtime = open_runtime(factory, queue_size=64)
    outcomes = []

    def talk(name):
        chat = runtime.conversation(name)
        outcomes.extend((name, chat.send(f"{name}{n}").text) for n in range(5))

    threads = [threading.Thread(target=talk, args=(f"c{n}",)) for n in range(12)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(outcomes) == 60
    assert {text for _, text in outcomes} == {"abc" * 20}
    for n in range(12):
        assert [turn.user for turn in runtime.conversation(f"c{n}").history()] == [
            f"c{n}{k}" for k in range(5)
        ]


def test_the_same_name_is_the_same_object(open_runtime):
    """Guards against two heads of one conversation; private ones live apart."""
    runtime = open_runtime()
    assert runtime.conversation("a") is runtime.conversation("a")
    assert runtime.conversation("a", private=True) is not runtime.conversation("a")
    assert runtime.conversation(private=True) is not runtime.conversation(private=True)
    for name in ("", " a", "a\nb", "x" * 201):
        with pytest.raises(ConversationError, match="name"):
            runtime.conversation(name)
    with pytest.raises(ConversationError, match="private=True"):
        runtime.conversation()


def test_a_second_runtime_degrades_and_says_so_once(open_runtime):
    """Guards two owners of one directory: the second has memory only, may read, and may chat privately."""
    first = open_runtime()
    first.conversation("a").send("one")
    factory = FakeFactory()
    second = open_runtime(factory)
    assert f"process {os.getpid()}" in second.degraded
    assert factory.data_dir is None
    with pytest.raises(StoreError, match=f"in use by process {os.getpid()}"):
        second.conversation("a")
    kept = second.conversation("a", read_only=True)
    assert [turn.user for turn in kept.history()] == ["one"]
    with pytest.raises(ConversationError, match="read only"):
        kept.send("two")
    unkept = second.conversation("a", keep=False)
    assert unkept.private
    assert "nothing is kept on disk" in unkept.send("two").notices[0]
    assert [turn.user for turn in unkept.history()] == ["one", "two"]
    assert [turn.user for turn in first.conversation("a").history()] == ["one"]
    assert len(second.conversation("a", read_only=True).history()) == 1, "nothing was kept"
    with pytest.raises(StoreError):
        second.forget("a")
    private = second.conversation(private=True)
    notices = [[e for e in private.stream(text) if isinstance(e, Notice)] for text in ("x", "y")]
    assert [len(found) for found in notices] == [0, 0], "it was said by the first answer"


def test_what_a_degraded_runtime_does_not_keep_can_be_renamed_and_forgotten(open_runtime):
    """Guards chats of a second instance: they were nobody's, "no private conversation is called so"."""
    first = open_runtime()
    first.conversation("a").send("one")
    factory = FakeFactory()
    second = open_runtime(factory)
    for name in ("a", "new"):
        chat = second.conversation(name, keep=False)
        assert second.conversation(name, keep=False) is chat
        chat.send("two")
        with pytest.raises(ConversationError, match="open already: rename it or forget it"):
            second.conversation(name, private=True)
        second.rename(name, f"{name} b", private=True)
        second.forget(f"{name} b", private=True)
        with pytest.raises(ConversationError, match="was forgotten"):
            chat.send("three")
    assert len(factory.engine.seen) == 0
    assert second.conversation("a", private=True).history() == []
    assert first.names() == second.names() == ["a"]


def test_names_are_listed_without_reading_turns(open_runtime, monkeypatch):
    """Guards new chats: every stored turn was decrypted to see whether a name is free."""
    from edgekv_storage import Transcripts

    runtime = open_runtime()
    runtime.conversation("a").send("one")

    def refuse(*_args):
        raise AssertionError("turns were read")

    monkeypatch.setattr(Transcripts, "readable_turns", refuse)
    assert runtime.names() == ["a"]


def test_an_unwritable_directory_degrades(tmp_path):
    """Guards a data directory that cannot be made: a private chat still works."""
    (tmp_path / "file").write_text("")
    with Runtime(engine_factory=FakeFactory(), data_dir=tmp_path / "file") as runtime:
        assert "not a directory" in runtime.degraded
        assert runtime.conversation(private=True).send("x").text == "hello there"
        assert runtime.conversations() == []


def test_a_newer_directory_is_left_alone(tmp_path):
    """Guards the format: an unknown one is an error, not a memory-only chat that seems to work."""
    (tmp_path / "meta.json").write_text('{"format": 999, "uuid": "x"}')
    with pytest.raises(StoreError, match="999"):
        Runtime(engine_factory=FakeFactory(), data_dir=tmp_path)
    assert (tmp_path / "meta.json").read_text() == '{"format": 999, "uuid": "x"}'


def test_another_model_is_told_and_may_read(open_runtime):
    """Guards token ids against being given to a model they do not belong to."""
    first = open_runtime()
    first.conversation("a").send("one")
    first.close()
    other = open_runtime(FakeFactory(front=FakeFront(fingerprint=b"\2" * 32, name="other")))
    with pytest.raises(ConversationError, match=r"belongs to the model fake .*this is other"):
        other.conversation("a")
    assert len(other.conversation("a", read_only=True).history()) == 1


def test_system_prompt_belongs_to_the_beginning(open_runtime):
    """Guards against a system prompt that silently does nothing on an old conversation."""
    factory = FakeFactory()
    runtime = open_runtime(factory)
    runtime.conversation("a", system="be kind").send("hi")
    assert "be kind" in FakeFront().tokenizer.decode(factory.engine.requests[0].token_ids)
    assert runtime.conversation("a", system="be kind").system == "be kind"
    with pytest.raises(ConversationError, match="another system prompt"):
        runtime.conversation("a", system="be rude")


def test_forget_destroys_text_and_kv(open_runtime, data_dir):
    """Guards forget: released with its KV, unreadable in the files, the old object refuses, the name is free."""
    factory = FakeFactory()
    runtime = open_runtime(factory)
    chat = runtime.conversation("a")
    chat.send("xyzzy-canary")
    runtime.forget("a")
    assert factory.engine.released == [(chat.sequence_id, True)]
    assert runtime.conversations() == []
    with pytest.raises(ConversationError, match="forgotten"):
        chat.send("x")
    assert all(b"xyzzy-canary" not in path.read_bytes() for path in data_dir.iterdir())
    assert runtime.conversation("a").history() == []
    with pytest.raises(ConversationError, match="no conversation is called 'b'"):
        runtime.forget("b")


def test_forget_stops_what_runs(open_runtime):
    """Guards forgetting in the middle of an answer: nothing of it is written afterwards."""
    factory = FakeFactory(answer="x" * 4000, token_s=0.01)
    runtime = open_runtime(factory)
    stream = runtime.conversation("a").stream("one", max_tokens=4000)
    next(stream)
    runtime.forget("a")
    assert runtime.conversations() == []
    assert not runtime.stats().is_generating


def test_private_is_never_written_and_not_durable(open_runtime, data_dir):
    """Guards private: no file holds it, the engine is told not to, a restart knows nothing."""
    factory = FakeFactory()
    runtime = open_runtime(factory)
    runtime.conversation("p", private=True).send("xyzzy-canary")
    assert factory.engine.requests[0].durable is False
    assert runtime.conversations() == []
    runtime.close()
    assert all(b"xyzzy-canary" not in path.read_bytes() for path in data_dir.iterdir())


def test_conversations_lists_what_is_kept(open_runtime):
    """Guards the listing: names, turns, models, last used first."""
    runtime = open_runtime()
    for name in ("a", "b"):
        runtime.conversation(name).send("x")
        time.sleep(0.01)
    runtime.conversation("a").send("y")
    infos = runtime.conversations()
    assert [(info.name, info.num_turns, info.model) for info in infos] == [("a", 2, "fake"), ("b", 1, "fake")]


def test_stats_do_not_wait_for_the_engine(open_runtime):
    """Guards the live map: it must not stand still while an answer is made."""
    factory = FakeFactory()
    runtime = open_runtime(factory, device_budget="8MiB")
    factory.engine.hold.clear()
    with runtime.conversation("a").stream("x"):
        while not runtime.stats().is_generating:
            time.sleep(0.001)
        stats = runtime.stats()
    assert (stats.model, stats.device_budget, stats.degraded) == ("fake", 8 << 20, None)


def test_rename_keeps_turns_and_refuses_taken_names(open_runtime):
    """Guards new names, of kept and of private conversations: the same object goes on, nothing is written twice."""
    runtime = open_runtime()
    chat, secret = runtime.conversation("a"), runtime.conversation("a", private=True)
    chat.send("one")
    runtime.conversation("b")
    runtime.conversation("b", private=True)
    for private in (False, True):
        with pytest.raises(ConversationError, match="already"):
            runtime.rename("a", "b", private=private)
        with pytest.raises(ConversationError, match="cannot be"):
            runtime.rename("a", " c", private=private)
        with pytest.raises(ConversationError, match="is called 'x'"):
            runtime.rename("x", "y", private=private)
        runtime.rename("a", "c", private=private)
    assert runtime.conversation("c") is chat
    assert runtime.conversation("c", private=True) is secret
    chat.send("two")
    runtime.close()
    again = open_runtime()
    assert sorted(info.name for info in again.conversations()) == ["b", "c"]
    assert [turn.user for turn in again.conversation("c").history()] == ["one", "two"]


def test_all_turns_and_markdown(open_runtime):
    """Guards what search and export read: every branch once, and the current one as text."""
    chat = open_runtime().conversation("a")
    chat.send("one")
    chat.edit(0, "two")
    assert [turn.user for turn in chat.turns()] == ["one", "two"]
    assert chat.markdown() == "# a\n\n## You\n\ntwo\n\n## Answer\n\nhello there\n"


@pytest.mark.skipif(sys.platform != "linux", reason="only there a thread has a priority of its own")
def test_who_asks_goes_first(open_runtime):
    """Guards keys that wait for the model's threads: the caller's keep their priority, the engine's do not."""
    before = os.getpriority(os.PRIO_PROCESS, 0)
    open_runtime().conversation("a").send("one")
    engine = next(thread for thread in threading.enumerate() if thread.name == "edgekv-engine")
    assert os.getpriority(os.PRIO_PROCESS, engine.native_id) == min(19, before + NICENESS)
    assert os.getpriority(os.PRIO_PROCESS, 0) == before
