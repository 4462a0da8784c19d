"""The real openai client against a live server on a fake model: what the protocol's own client sees."""

import asyncio

import pytest
from fakes import FakeFactory
from patience import wait_until
from server_client import TOKEN, live

openai = pytest.importorskip("openai")
HI = [{"role": "user", "content": "hi"}]


@pytest.fixture(scope="module")
def place():
    """One live server for the tests that leave it as it was."""
    with live(FakeFactory()) as (_, url):
        yield url


def client_of(url, **options):
    return openai.OpenAI(base_url=url, **{"api_key": TOKEN, "max_retries": 0, **options})


def test_whole_and_streamed(place):
    """Guards the whole way with the client people have: text, usage, cached tokens, models."""
    with client_of(place) as client:
        assert [model.id for model in client.models.list()] == ["fake"]
        answer = client.chat.completions.create(model="fake", messages=HI)
        assert answer.choices[0].message.content == "hello there"
        assert answer.choices[0].finish_reason == "stop"
        messages = [*HI, answer.choices[0].message, {"role": "user", "content": "and?"}]
        stream = client.chat.completions.create(
            model="fake", messages=messages, stream=True, stream_options={"include_usage": True}
        )
        chunks = list(stream)
        text = "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices)
        assert text == "hello there"
        cached = chunks[-1].usage.prompt_tokens_details.cached_tokens
        assert cached == answer.usage.total_tokens
        assert client.completions.create(model="fake", prompt="x", max_tokens=2).choices[0].text == "he"


def test_refusals_are_the_clients_own_errors(place):
    """Guards statuses: each is the exception that programs written for the protocol catch."""
    with client_of(place, api_key="wrong") as client, pytest.raises(openai.AuthenticationError):
        client.models.list()
    with client_of(place, default_headers={"Host": "evil.example"}) as client:
        with pytest.raises(openai.APIStatusError) as caught:
            client.models.list()
        assert caught.value.status_code == 421
    with client_of(place) as client:
        with pytest.raises(openai.NotFoundError):
            client.chat.completions.create(model="gpt-4", messages=HI)
        with pytest.raises(openai.BadRequestError) as caught:
            client.chat.completions.create(model="fake", messages=HI, tools=[{"type": "function"}])
        assert (caught.value.code, caught.value.param) == ("unsupported_parameter", "tools")
        with pytest.raises(openai.APIStatusError) as caught:
            client.chat.completions.create(
                model="fake", messages=[{"role": "user", "content": "x" * (1 << 21)}]
            )
        assert caught.value.status_code == 413


def test_eight_at_once(place):
    """Guards concurrency: every client gets its own answer."""

    async def main():
        async with openai.AsyncOpenAI(base_url=place, api_key=TOKEN) as client:
            asked = [
                client.chat.completions.create(
                    model="fake", messages=[{"role": "user", "content": f"I am {who}"}]
                )
                for who in range(8)
            ]
            return [answer.choices[0].message.content for answer in await asyncio.gather(*asked)]

    assert asyncio.run(main()) == ["hello there"] * 8


def test_hanging_up_stops_the_computation():
    """Guards disconnects over a real connection, in prefill and while the answer comes."""
    factory = FakeFactory(answer="y" * 100_000, token_s=0.001, block_s=0.1)

    async def hang_up(url):
        async with openai.AsyncOpenAI(base_url=url, api_key=TOKEN, max_retries=0) as client:
            stream = await client.chat.completions.create(model="fake", messages=HI, stream=True)
            await anext(aiter(stream))
            await stream.close()
            long = [{"role": "user", "content": "x" * 100_000}]
            task = asyncio.create_task(client.chat.completions.create(model="fake", messages=long))
            await asyncio.to_thread(wait_until, lambda: len(factory.engine.requests) == 2)
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task

    with live(factory) as (runtime, url):
        asyncio.run(hang_up(url))
        wait_until(lambda: not runtime.stats().is_generating)
    assert factory.engine.computed_tokens < 99_000
