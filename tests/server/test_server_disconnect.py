"""A client that goes away: the computation stops, in prefill too, and the conversation can be lent again."""

import asyncio
import json

import pytest
from fakes import FakeFactory
from patience import PATIENCE_S, wait_until
from server_client import HEADERS

from edgekv import Runtime
from edgekv.server.app import Service

LONG = "x" * 80_000


class Client:
    """Speaks ASGI to the application, and hangs up when told."""

    def __init__(self, app, text, **fields):
        messages = [{"role": "user", "content": text}]
        self.body = json.dumps({"model": "fake", "messages": messages, **fields}).encode()
        self.app = app
        self.gone = asyncio.Event()
        self.said = asyncio.Event()
        self.sent = []
        self.has_read = False

    async def receive(self):
        if not self.has_read:
            self.has_read = True
            return {"type": "http.request", "body": self.body, "more_body": False}
        await self.gone.wait()
        return {"type": "http.disconnect"}

    async def send(self, message):
        self.sent.append(message)
        if b"data:" in message.get("body", b"") or b": prefill" in message.get("body", b""):
            self.said.set()

    async def run(self):
        names = {"host": "127.0.0.1", "content-type": "application/json", **HEADERS}
        headers = [(name.lower().encode(), value.encode()) for name, value in names.items()]
        scope = {"type": "http", "method": "POST", "path": "/v1/chat/completions", "headers": headers}
        scope |= {"query_string": b"", "http_version": "1.1", "scheme": "http", "server": ("127.0.0.1", 1)}
        await self.app(scope, self.receive, self.send)


def serve(factory, scenario):
    with Runtime(engine_factory=factory, durable=False) as runtime:
        app = Service(runtime).app(token=HEADERS["Authorization"].removeprefix("Bearer "))
        return asyncio.run(scenario(runtime, app))


@pytest.mark.parametrize("streams", [True, False])
def test_gone_in_prefill(streams):
    """Guards llama-cpp-python#599: nobody waits any more, so the rest of a long prompt is not computed."""
    factory = FakeFactory(block_s=0.1)

    async def scenario(runtime, app):
        client = Client(app, LONG, stream=streams)
        running = asyncio.create_task(client.run())
        await asyncio.to_thread(factory.engine.started.wait)
        client.gone.set()
        await asyncio.wait_for(running, PATIENCE_S)
        await asyncio.to_thread(wait_until, lambda: not runtime.stats().is_generating)

    serve(factory, scenario)
    assert factory.engine.computed_tokens < 79_000


def test_gone_while_it_answers_and_while_it_waits():
    """Guards the running one and the queued one, and that what was said is where the next request goes on."""
    factory = FakeFactory(answer="y" * 5000, token_s=0.01)

    async def scenario(runtime, app):
        first, second = Client(app, "one" * 2000, stream=True), Client(app, "two", stream=True)
        running = [asyncio.create_task(first.run())]
        await first.said.wait()
        running.append(asyncio.create_task(second.run()))
        await asyncio.to_thread(wait_until, lambda: runtime.stats().num_waiting == 1)
        second.gone.set()
        await asyncio.wait_for(running[1], PATIENCE_S)
        first.gone.set()
        await asyncio.wait_for(running[0], PATIENCE_S)
        await asyncio.to_thread(wait_until, lambda: not runtime.stats().is_generating)
        again = Client(app, "one" * 2000, max_tokens=1)
        await again.run()
        return json.loads(again.sent[-1]["body"])["usage"]

    usage = serve(factory, scenario)
    assert len(factory.engine.requests) == 2, "the queued one never ran"
    assert usage["prompt_tokens_details"]["cached_tokens"] > 6000


def test_a_stopped_server_stops_the_computation():
    """Guards Ctrl+C: the task of a request is cancelled, and nothing goes on computing behind it."""
    factory = FakeFactory(block_s=0.1)

    async def scenario(runtime, app):
        client = Client(app, LONG, stream=True)
        running = asyncio.create_task(client.run())
        await asyncio.to_thread(factory.engine.started.wait)
        running.cancel()
        with pytest.raises(asyncio.CancelledError):
            await running
        await asyncio.to_thread(wait_until, lambda: not runtime.stats().is_generating)

    serve(factory, scenario)
    assert factory.engine.computed_tokens < 79_000
