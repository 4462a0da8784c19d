"""Chat and text completions over a fake engine: shapes, streams, usage, and what is reused."""

import json

from fakes import FakeFactory, FakeFront
from patience import wait_until

CHAT = "/v1/chat/completions"


def ask(client, *texts, **fields):
    roles = ("user", "assistant")
    messages = [{"role": roles[at % 2], "content": text} for at, text in enumerate(texts)]
    return client.post(CHAT, json={"model": "fake", "messages": messages, **fields})


def events(response):
    """The objects of a stream, and its comments."""
    blocks = response.text.split("\n\n")
    assert blocks[-2:] == ["data: [DONE]", ""]
    comments = [block for block in blocks if block.startswith(":")]
    return [
        json.loads(block.removeprefix("data: ")) for block in blocks[:-2] if block.startswith("data")
    ], comments


def test_a_whole_answer(open_client):
    """Guards the object that clients read, and that cached tokens are counted, not guessed."""
    client = open_client()
    answer = ask(client, "hi").json()
    assert answer["object"] == "chat.completion"
    assert answer["choices"][0]["message"] == {"role": "assistant", "content": "hello there", "refusal": None}
    assert answer["choices"][0]["finish_reason"] == "stop"
    use = answer["usage"]
    assert use["prompt_tokens_details"]["cached_tokens"] == 0
    again = ask(client, "hi", "hello there", "more").json()["usage"]
    assert again["prompt_tokens_details"]["cached_tokens"] == use["total_tokens"]


def test_a_stream(open_client):
    """Guards the order of chunks, usage in the last one only when asked for, and comments during prefill."""
    response = ask(open_client(), "hi", stream=True, stream_options={"include_usage": True})
    assert response.headers["content-type"] == "text/event-stream; charset=utf-8"
    chunks, comments = events(response)
    assert chunks[0]["choices"][0]["delta"] == {"role": "assistant", "content": ""}
    assert "".join(c["choices"][0]["delta"].get("content", "") for c in chunks[:-1]) == "hello there"
    assert chunks[-2]["choices"][0]["finish_reason"] == "stop"
    assert chunks[-2]["edgekv"]["exactness"] == "exact"
    assert (chunks[-1]["choices"], chunks[-1]["usage"]["completion_tokens"]) == ([], 12)
    assert all(chunk["usage"] is None for chunk in chunks[:-1])
    assert len({chunk["id"] for chunk in chunks}) == 1
    assert comments[-1] == ": prefill 21/21, 0 reused"
    plain, _ = events(ask(open_client(), "hi", stream=True))
    assert not any("usage" in chunk for chunk in plain)


def test_options_reach_the_engine(open_client):
    """Guards against a field that is accepted and does nothing."""
    factory = FakeFactory()
    client = open_client(factory)
    fields = {"temperature": 0.5, "top_p": 0.9, "seed": 7, "stop": ["lo"], "top_k": 3, "min_p": 0.1}
    answer = ask(
        client, "hi", max_completion_tokens=9, n=1, tools=[], user="me", logprobs=None, **fields
    ).json()
    assert answer["choices"][0]["message"]["content"] == "hel"
    (request,) = factory.engine.requests
    sampling = request.sampling
    assert (sampling.temperature, sampling.top_p, sampling.seed, sampling.top_k) == (0.5, 0.9, 7, 3)
    assert (request.max_tokens, request.stop, request.durable) == (9, ("lo",), False)
    assert ask(client, "hi", max_tokens=2).json()["choices"][0]["finish_reason"] == "length"


def test_system_and_parts_reach_the_template(open_client):
    """Guards system and developer messages and content in parts."""
    factory = FakeFactory()
    client = open_client(factory)
    parts = [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]
    messages = [
        {"role": "system", "content": "s"},
        {"role": "developer", "content": "d"},
        {"role": "user", "content": parts, "name": None},
    ]
    assert client.post(CHAT, json={"model": "fake", "messages": messages}).status_code == 200
    text = FakeFront().tokenizer.decode(list(factory.engine.requests[0].token_ids), special=True)
    assert text == "<s><|system\ns\n\nd|><|user\nab|><|assistant\n"


def test_two_dialogues_stay_warm(open_client):
    """Guards clients that take turns: each has a sequence of its own, none throws the other's KV away."""
    client = open_client()
    for who in ("anna", "bert"):
        ask(client, f"I am {who}")
    for who in ("anna", "bert"):
        use = ask(client, f"I am {who}", "hello there", "who am I?").json()["usage"]
        assert use["prompt_tokens_details"]["cached_tokens"] > 30


def test_a_long_text_asked_about_twice_is_read_once(open_client):
    """Guards one-shot requests over the same document, and that a long dialogue is not cut for a short start."""
    client = open_client()
    document = "x" * 600
    ask(client, document + "first question")
    use = ask(client, document + "second question").json()["usage"]
    assert use["prompt_tokens_details"]["cached_tokens"] > 600
    said = [document + "second question", "hello there", "y" * 900]
    ask(client, *said)
    assert ask(client, document + "third").json()["usage"]["prompt_tokens_details"]["cached_tokens"] == 0
    use = ask(client, *said, "hello there", "on").json()["usage"]
    assert use["prompt_tokens_details"]["cached_tokens"] > 1500


def test_nothing_is_kept_unless_asked(open_client, data_dir):
    """Guards privacy: requests leave no conversation; with a name the conversation is kept and continued."""
    client = open_client(data_dir=data_dir)
    ask(client, "secret")
    ask(client, "one", conversation="kept")
    use = ask(client, "one", "hello there", "two", conversation="kept").json()["usage"]
    assert use["prompt_tokens_details"]["cached_tokens"] == 34
    (info,) = client.runtime.conversations()
    assert (info.name, info.num_turns) == ("kept", 2)


def test_text_completions(open_client):
    """Guards the older endpoint: the text alone, no template, both ways."""
    factory = FakeFactory()
    client = open_client(factory)
    body = {"model": "fake", "prompt": "once upon", "max_tokens": 5, "echo": False}
    answer = client.post("/v1/completions", json=body).json()
    assert (answer["object"], answer["choices"][0]["text"]) == ("text_completion", "hello")
    assert len(factory.engine.requests[0].token_ids) == 10
    chunks, _ = events(client.post("/v1/completions", json={**body, "stream": True}))
    assert "".join(chunk["choices"][0]["text"] for chunk in chunks) == "hello"
    assert chunks[-1]["choices"][0]["finish_reason"] == "length"


def test_models_health_and_metrics(open_client):
    """Guards what programs ask first, and that metrics count what happened."""
    client = open_client()
    (model,) = client.get("/v1/models").json()["data"]
    assert (model["id"], client.get("/v1/models/fake").json()) == ("fake", model)
    assert client.get("/v1/models/other").status_code == 404
    assert client.get("/health", headers={"Authorization": ""}).json() == {"status": "ok"}
    ask(client, "hi")
    ask(client, "hi", model="other")
    metrics = client.get("/metrics").text
    assert 'edgekv_requests_total{endpoint="chat",status="200"} 1' in metrics
    assert 'edgekv_requests_total{endpoint="refused",status="404"} 2' in metrics
    assert 'edgekv_tokens_total{kind="completion"} 12' in metrics
    assert 'edgekv_time_to_first_token_seconds_bucket{le="+Inf"} 1' in metrics
    assert "edgekv_model_loaded 1" in metrics
    assert 'edgekv_kv_limit_bytes{tier="host"} 2147483648' in metrics


def test_an_error_in_the_middle_of_a_stream_is_an_event(open_client):
    """Guards clients from a stream that just ends: what was sent stays, and the error is told without its text."""
    error = RuntimeError("says secret things")
    response = ask(open_client(FakeFactory(error=error, error_at=3)), "hi", stream=True)
    assert response.status_code == 200
    last = json.loads(response.text.strip().split("\n\n")[-1].removeprefix("data: "))
    assert last["error"]["type"] == "server_error"
    assert "secret" not in response.text
    assert ask(open_client(FakeFactory(error=error)), "hi").status_code == 500


def test_dialogues_are_given_up_in_the_end(open_client):
    """Guards memory: of many dialogues the oldest are forgotten, and a refused request leaves none behind."""
    client = open_client()
    for number in range(40):
        ask(client, f"{number} is my number")
    wait_until(lambda: client.runtime.stats().num_open_conversations == 32)
    assert ask(client, "39 is my number", "hello there", "x").json()["usage"]["prompt_tokens_details"][
        "cached_tokens"
    ]
    ask(client, "x" * 99, top_p=0)
    wait_until(lambda: client.runtime.stats().num_open_conversations == 32)
