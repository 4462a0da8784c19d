"""The Runtime's side of unloading and hints, over a fake engine."""

import asyncio

import pytest
from fakes import FakeFactory
from patience import wait_until

from edgekv import AsyncRuntime, ConfigError


def test_unload_and_go_on(open_runtime):
    """Guards conversations across an unload: the same object answers, and its turns are all there."""
    factory = FakeFactory()
    runtime = open_runtime(factory)
    chat = runtime.conversation("a")
    chat.send("one")
    runtime.unload()
    assert not runtime.stats().is_loaded
    assert [turn.user for turn in chat.history()] == ["one"]
    runtime.load()
    assert runtime.stats().is_loaded
    runtime.unload()
    assert chat.send("two").text == "hello there"
    assert (runtime.stats().is_loaded, factory.engine.num_unloaded) == (True, 2)


def test_keep_alive_unloads_by_itself(open_runtime):
    """Guards keep_alive: after the time without work, and again after the next answer."""
    factory = FakeFactory(token_s=0.02)
    runtime = open_runtime(factory, keep_alive=0.1)
    chat = runtime.conversation("a")
    for _ in range(2):
        assert chat.send("one").finish_reason == "stop"  # takes longer than keep_alive: work is not idleness
        wait_until(lambda: not runtime.stats().is_loaded, "it to be unloaded")


def test_hints_reach_the_engine(open_runtime):
    """Guards against a hint that is taken and does nothing."""
    factory = FakeFactory()
    chat = open_runtime(factory).conversation("a")
    chat.hint(expect="tool")
    chat.hint(expect="user", ttl=5)
    assert factory.engine.hints == [(chat.sequence_id, "tool", None), (chat.sequence_id, "user", 5)]
    for wrong in ({"expect": "tools"}, {"expect": "tool", "ttl": 0}, {"expect": "tool", "ttl": float("nan")}):
        with pytest.raises(ConfigError):
            chat.hint(**wrong)


def test_vectors_do_not_wait_for_an_answer_and_load_the_model(open_runtime):
    """Guards programs that chat and search: the answer under way may take minutes. Unloaded, it is loaded first."""
    factory = FakeFactory()
    runtime = open_runtime(factory)
    factory.engine.hold.clear()
    stream = runtime.conversation("a").stream("x")
    found = runtime.embed(["aa", [4, 8, 5]])
    assert (found.vectors.shape, found.num_tokens) == ((2, 4), 5)
    factory.engine.hold.set()
    stream.result()
    runtime.unload()
    assert (runtime.embed(["aa", [4, 8, 5]]).vectors == found.vectors).all()
    assert runtime.stats().is_loaded
    with pytest.raises(ConfigError, match="text 1 is empty"):
        runtime.embed(["a", ""])


def test_asyncio_has_them_too(data_dir):
    """Guards the asyncio face."""

    async def main():
        async with AsyncRuntime(engine_factory=FakeFactory(), data_dir=data_dir) as runtime:
            await runtime.unload()
            before = runtime.stats().is_loaded
            await runtime.load()
            (await runtime.conversation("a")).hint(expect="done")
            assert (await runtime.embed(["a"])).num_tokens == 1
            return before, runtime.stats().is_loaded

    assert asyncio.run(main()) == (False, True)
