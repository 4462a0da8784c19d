"""Events pushed to a handler: in order, complete, in the thread that was asked for."""

import threading
from queue import SimpleQueue

import pytest
from fakes import FakeFactory
from patience import PATIENCE_S, Held, wait_until

from edgekv import Done, TextDelta


class Loop:
    """A GUI's event loop: functions from any thread, run in one."""

    def __init__(self):
        self._functions = SimpleQueue()
        self.num_scheduled = 0

    def soon(self, function):
        self.num_scheduled += 1
        self._functions.put(function)

    def run_until(self, condition):
        while not condition():
            self._functions.get(timeout=PATIENCE_S)()


def test_events_come_in_the_loops_thread(open_runtime):
    """Guards GUI programs: every event once, in order, in their own thread, Done at the end; few wake-ups."""
    chat = open_runtime(FakeFactory(answer="abcdefgh" * 20)).conversation("a")
    loop, got, threads = Loop(), [], set()

    def handle(event):
        got.append(event)
        threads.add(threading.current_thread())

    chat.stream("hi", max_tokens=1000).deliver(handle, loop.soon)
    loop.run_until(lambda: got and isinstance(got[-1], Done))
    assert "".join(event.text for event in got if isinstance(event, TextDelta)) == "abcdefgh" * 20
    assert threads == {threading.current_thread()}
    assert loop.num_scheduled <= len(got)


def test_errors_and_what_ended_before_are_delivered(open_runtime):
    """Guards the last event: an error is handed over as one, and what is over already is delivered whole."""
    runtime = open_runtime(FakeFactory(error=ValueError("broken"), error_at=2))
    got, ended = [], threading.Event()

    def handle(event):
        got.append(event)
        if isinstance(event, Done | BaseException):
            ended.set()

    stream = runtime.conversation("a").stream("hi")
    stream._generation.wait()
    stream.deliver(handle)
    assert ended.wait(PATIENCE_S)
    assert isinstance(got[-1], ValueError)
    assert "".join(event.text for event in got if isinstance(event, TextDelta)) == "he"


def test_a_handler_that_fails_stops_its_answer_only(open_runtime, caplog):
    """Guards the engine's thread: an error in the caller's code must not end it for everybody."""
    runtime = open_runtime(FakeFactory(answer="x" * 5000, token_s=0.01))

    def handle(_event):
        raise RuntimeError("in the GUI")

    stream = runtime.conversation("a").stream("hi", max_tokens=5000)
    stream.deliver(handle)
    stream._generation.wait()
    assert "a handler of events failed" in caplog.text
    assert runtime.conversation("b").send("hi", max_tokens=2).text == "xx"


def test_a_handler_that_fails_in_its_loop_raises_there(open_runtime):
    """Guards the GUI's own error reports: its loop sees the exception, and no event comes after it."""
    loop, calls = Loop(), []

    def handle(event):
        calls.append(event)
        raise RuntimeError("in the GUI")

    stream = open_runtime(FakeFactory(answer="x" * 5000, token_s=0.01)).conversation("a").stream("hi")
    stream.deliver(handle, loop.soon)
    with pytest.raises(RuntimeError, match="in the GUI"):
        loop.run_until(lambda: False)
    stream._generation.wait()
    assert len(calls) == 1


def test_a_time_limit_holds_in_the_queue_too(open_runtime):
    """Guards deliver with a timeout: it ends in time though another answer is being made, and its timer is gone."""
    factory = FakeFactory()
    runtime = open_runtime(factory)
    factory.engine.hold.clear()
    running = runtime.conversation("a").stream("hi")
    assert factory.engine.started.wait(PATIENCE_S)
    got, ended = [], threading.Event()

    def handle(event):
        got.append(event)
        if isinstance(event, Done):
            ended.set()

    held = Held()
    runtime.conversation("b").stream("hi", timeout=0.05).deliver(handle)
    assert ended.wait(PATIENCE_S)
    assert (got[-1].result.finish_reason, len(factory.engine.requests)) == ("cancelled", 1)
    factory.engine.hold.set()
    assert running.result().text == "hello there"
    runtime.conversation("b").stream("hi", timeout=1000).deliver(handle)
    runtime.conversation("c").send("hi")
    wait_until(lambda: not held.new_threads(), "the end of the timer's thread")
