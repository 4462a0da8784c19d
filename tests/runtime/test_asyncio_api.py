"""The asyncio face: events, cancelling tasks, time limits, no thread left behind."""

import asyncio
import threading

import pytest
from fakes import FakeFactory
from patience import PATIENCE_S, Held, wait_until

from edgekv import AsyncRuntime, Busy, Cancelled, Done, TextDelta

LONG = {"answer": "x" * 5000, "token_s": 0.01}


def run(data_dir, factory, scenario, **options):
    async def main():
        async with AsyncRuntime(engine_factory=factory, data_dir=data_dir, **options) as runtime:
            return await scenario(runtime)

    return asyncio.run(main())


def test_events_and_result(data_dir):
    """Guards `async for`: the same events as without asyncio."""

    async def scenario(runtime):
        chat = await runtime.conversation("a")
        events = [event async for event in chat.stream("hi")]
        return events, await chat.send("again"), await runtime.conversations()

    events, result, infos = run(data_dir, FakeFactory(), scenario)
    assert "".join(e.text for e in events if isinstance(e, TextDelta)) == "hello there"
    assert isinstance(events[-1], Done)
    assert result.text == "hello there"
    assert [info.name for info in infos] == ["a"]


def test_cancelling_the_task_stops_the_computation(data_dir):
    """Guards task.cancel(): when the task has ended, so has the engine; the part is kept."""
    factory = FakeFactory(**LONG)

    async def scenario(runtime):
        chat = await runtime.conversation("a")
        task = asyncio.create_task(chat.send("one", max_tokens=5000))
        await asyncio.to_thread(wait_until, lambda: factory.engine.num_generated)
        assert runtime.stats().is_generating
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        (turn,) = chat.history()
        return turn.state, len(turn.answer_ids), (await chat.send("two", max_tokens=1)).finish_reason

    state, num_tokens, reason = run(data_dir, factory, scenario)
    assert state == "stopped"
    assert 0 < num_tokens < 5000
    assert reason == "length"


def test_cancelling_at_once_leaves_nothing_running(data_dir):
    """Guards the moment between asking and the first event: the submitted work must not be orphaned."""

    async def scenario(runtime):
        chat = await runtime.conversation("a")
        for _ in range(10):
            task = asyncio.create_task(chat.send("one", max_tokens=5000))
            await asyncio.sleep(0)
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
        return (await chat.send("two", max_tokens=1)).finish_reason

    assert run(data_dir, FakeFactory(**LONG), scenario) == "length"


def test_break_stops_the_computation(data_dir):
    """Guards leaving `async for` early."""

    async def scenario(runtime):
        chat = await runtime.conversation("a")
        async for event in chat.stream("one", max_tokens=5000):
            if isinstance(event, TextDelta):
                break
        await chat.send("two", max_tokens=1)
        return chat.history()[0].state

    assert run(data_dir, FakeFactory(**LONG), scenario) == "stopped"


def test_break_stops_it_whoever_else_still_holds_the_answer(data_dir):
    """Guards the next message after `break`: it was refused as long as a thread still held what it had begun."""

    async def scenario(runtime):
        chat = await runtime.conversation("a")
        stream, held = chat.stream("one", max_tokens=5000), []
        async for event in stream:
            if isinstance(event, TextDelta):
                held.append(stream._stream)
                break
        del stream
        return (await chat.send("two", max_tokens=1)).finish_reason

    assert run(data_dir, FakeFactory(**LONG), scenario) == "length"


def test_timeout_and_errors(data_dir):
    """Guards timeout= and that errors come out of the await."""

    async def scenario(runtime):
        chat = await runtime.conversation("a")
        with pytest.raises(Cancelled) as caught:
            await chat.send("one", max_tokens=5000, timeout=0.1)
        stream = chat.stream("two", max_tokens=5000)
        await anext(stream)
        with pytest.raises(Busy):
            await chat.send("three")
        await stream.aclose()
        return caught.value.partial.finish_reason

    assert run(data_dir, FakeFactory(**LONG), scenario) == "cancelled"


def test_the_event_loop_is_never_blocked(data_dir):
    """Guards the loop: it beats between any two tokens. A loop that waited for one would wait for itself."""
    factory, may_go_on = FakeFactory(answer="x" * 20), threading.Semaphore(0)

    async def scenario(runtime):
        factory.engine._may_go_on = lambda _is_cancelled: may_go_on.acquire(timeout=PATIENCE_S)
        chat = await runtime.conversation("a")
        task = asyncio.create_task(chat.send("one", max_tokens=100))
        for number in range(20):
            for _ in range(3):
                await asyncio.sleep(0.001)
            assert factory.engine.num_generated <= number
            may_go_on.release()
        return (await task).finish_reason

    assert run(data_dir, factory, scenario) == "stop"


def test_no_thread_is_left(data_dir):
    """Guards thread leaks over many runtimes and streams."""

    async def scenario(runtime):
        chat = await runtime.conversation("a")
        for _ in range(5):
            await chat.send("x")

    held = Held()
    for _ in range(3):
        run(data_dir, FakeFactory(), scenario)
    assert not held.new_threads()
