"""What is refused: with which status, saying what, and never as the server's own failure."""

import pytest
from fakes import FakeFactory, FakeFront
from server_client import open_test_client

CHAT = "/v1/chat/completions"
USER = {"role": "user", "content": "hi"}
GOOD = {"model": "fake", "messages": [USER]}

REFUSED = [
    ({"tools": [{"type": "function"}]}, "unsupported_parameter", "tools"),
    ({"functions": [{}]}, "unsupported_parameter", "functions"),
    ({"tool_choice": "required"}, "unsupported_parameter", "tool_choice"),
    (
        {"response_format": {"type": "json_schema", "json_schema": {}}},
        "unsupported_parameter",
        "response_format",
    ),
    ({"response_format": {"type": "json_object"}}, "unsupported_parameter", "response_format"),
    ({"n": 2}, "unsupported_parameter", "n"),
    ({"n": True}, "unsupported_parameter", "n"),
    ({"logprobs": True}, "unsupported_parameter", "logprobs"),
    ({"presence_penalty": 0.5}, "unsupported_parameter", "presence_penalty"),
    ({"store": True}, "unsupported_parameter", "store"),
    ({"modalities": ["text", "audio"]}, "unsupported_parameter", "modalities"),
    ({"temprature": 1}, "unknown_parameter", "temprature"),
    ({"top_p": 2}, "invalid_value", "top_p"),
    ({"top_k": -1}, "invalid_value", "top_k"),
    ({"timeout": 0}, "invalid_value", "timeout"),
    ({"temperature": "hot"}, "invalid_value", "temperature"),
    ({"temperature": -1}, "invalid_value", "temperature"),
    ({"top_p": 0}, "invalid_value", "top_p"),
    ({"max_tokens": 0}, "invalid_value", "max_tokens"),
    ({"max_tokens": 10**30}, "invalid_value", "max_tokens"),
    ({"seed": 1 << 64}, "invalid_value", "seed"),
    ({"stop": ["a"] * 17}, "invalid_value", "stop"),
    ({"stream": "yes"}, "invalid_value", "stream"),
    ({"stream_options": {"include_usage": True}}, "invalid_value", "stream_options"),
    ({"messages": []}, "invalid_messages", None),
    ({"messages": {}}, "invalid_value", "messages"),
    ({"messages": ["hi"]}, "invalid_value", "messages"),
    ({"messages": [{"content": "hi"}]}, "invalid_value", "messages"),
    ({"messages": [{"role": "robot", "content": "hi"}]}, "invalid_messages", None),
    ({"messages": [USER, {"role": "assistant", "content": "x"}]}, "invalid_messages", None),
    ({"messages": [{**USER, "name": "anna"}]}, "unsupported_parameter", "messages[0].name"),
    ({"messages": [USER, {"role": "tool", "content": "x"}]}, "unsupported_parameter", "messages[1].role"),
    (
        {"messages": [{"role": "assistant", "tool_calls": [{}]}]},
        "unsupported_parameter",
        "messages[0].tool_calls",
    ),
    (
        {"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "x"}}]}]},
        "unsupported_parameter",
        "messages[0].content",
    ),
]


@pytest.fixture(scope="module")
def client():
    """One for all: a refused request leaves nothing behind."""

    with open_test_client(FakeFactory()) as client:
        yield client


@pytest.mark.parametrize(("fields", "code", "param"), REFUSED, ids=lambda value: str(value)[:40])
def test_what_is_not_done_is_said(client, fields, code, param):
    """Guards against silence: each is 400, names the field, and says what to do."""
    response = client.post(CHAT, json={**GOOD, **fields})
    error = response.json()["error"]
    assert (response.status_code, error["code"], error["param"]) == (400, code, param)
    assert error["type"] == "invalid_request_error"
    assert error["message"]
    assert "expects X" not in error["message"]


@pytest.mark.parametrize(
    "body",
    [b"", b"{", b"[]", b"[" * 5000, b"null", b"\xff\xfe", b'{"model": "fake", "messages": [{"role": "user", "co',
     b'{"a": 1e999}', b'{"model": "\\ud800"}', b'{"model": ' + b"9" * 5000 + b"}"],
    ids=lambda body: repr(body[:12]),
)  # fmt: skip
def test_what_is_no_json_is_400(client, body):
    """Guards against a 500, or worse, for bytes that anybody can send."""
    for path in (CHAT, "/v1/completions"):
        response = client.post(path, content=body, headers={"Content-Type": "application/json"})
        assert (response.status_code, response.json()["error"]["type"]) == (400, "invalid_request_error")


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({"Authorization": ""}, 401),
        ({"Authorization": "Bearer wrong"}, 401),
        ({"Authorization": "Bearer \xe9"}, 401),
        ({"Authorization": "Basic a-token-of-some-length"}, 401),
        ({"Host": "evil.example"}, 421),
        ({"Host": "127.0.0.1.evil.example:8377"}, 421),
        ({"Host": "localhost:8377"}, 200),
        ({"Host": "[::1]:8377"}, 200),
        ({"Origin": "http://evil.example"}, 403),
        ({"Origin": "null"}, 403),
        ({"Origin": "http://127.0.0.1:1"}, 403),
        ({"Origin": "http://127.0.0.1:8377"}, 200),
        ({"Sec-Fetch-Site": "cross-site"}, 403),
        ({"Content-Type": "text/plain"}, 415),
    ],
    ids=str,
)
def test_who_may_speak(client, headers, status):
    """Guards against web pages and other users' programs: a wrong Host, Origin or token goes no further."""
    encoded = {name: value.encode("latin-1") for name, value in headers.items()}
    response = client.post(CHAT, json=GOOD, headers=encoded)
    assert response.status_code == status
    if status != 200:
        assert response.json()["error"]["message"]


def test_too_large_and_unknown(client):
    """Guards memory, and that unknown places answer in the protocol's own form."""
    large = {**GOOD, "messages": [{"role": "user", "content": "x" * (1 << 20)}]}
    assert client.post(CHAT, json=large).status_code == 413
    assert client.post(CHAT, json={**GOOD, "model": "gpt-4"}).json()["error"]["code"] == "model_not_found"
    assert client.get("/v1/responses").json()["error"]["code"] == "unknown_url"
    assert client.get(CHAT).status_code == 405
    assert client.post("/v1/completions", json={"model": "fake", "prompt": ["a", "b"]}).status_code == 400
    assert client.post("/v1/completions", json={"model": "fake", "prompt": [1, 2]}).status_code == 400


def test_a_context_that_does_not_fit_is_told(open_client):
    """Guards against silent truncation (ollama#3839): nothing is generated."""
    factory = FakeFactory(front=FakeFront(context_length=20))
    response = open_client(factory, attention="exact").post(CHAT, json=GOOD)
    assert (response.status_code, response.json()["error"]["code"]) == (400, "context_length_exceeded")
    assert factory.engine.requests == []


def test_a_full_queue_says_when_to_come_again(open_client):
    """Guards the bounded queue: 429 with Retry-After, which clients obey, instead of an unbounded wait."""
    from edgekv import Busy

    factory = FakeFactory(error=Busy("8 requests are waiting already"))
    response = open_client(factory).post(CHAT, json=GOOD)
    assert (response.status_code, response.headers["retry-after"]) == (429, "1")


def test_what_cannot_be_kept_is_told(client):
    """Guards a named conversation where nothing is durable: 409, instead of an answer that is gone afterwards."""
    response = client.post(CHAT, json={**GOOD, "conversation": "kept"})
    assert (response.status_code, response.json()["error"]["code"]) == (409, "cannot_be_kept")


def test_a_closed_runtime_is_503(open_client):
    """Guards the one case that is the server's own."""
    client = open_client()
    client.runtime.close()
    assert client.post(CHAT, json=GOOD).status_code == 503
    assert client.get("/health").status_code == 503
