"""Bytes that nobody should send: the server says 4xx or hangs up, and goes on serving."""

import json
import socket

import pytest
from fakes import FakeFactory
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from patience import PATIENCE_S
from server_client import TOKEN, live, open_test_client

CHAT = "/v1/chat/completions"
FIELDS = (
    *(
        "messages",
        "max_tokens",
        "temperature",
        "top_p",
        "top_k",
        "min_p",
        "seed",
        "stop",
        "stream",
        "stream_options",
    ),
    *("tools", "n", "response_format", "conversation", "timeout", "prompt", "logit_bias", "user", "x"),
)
LEAVES = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-(1 << 70), 1 << 70),
    st.floats(allow_nan=False, allow_infinity=False),
    st.text(max_size=8),
    st.sampled_from(["user", "assistant", "system", "text"]),
)
VALUES = st.recursive(
    LEAVES,
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(st.sampled_from(["role", "content", "type", "text", "name"]), inner, max_size=3)
    ),
    max_leaves=6,
)


@pytest.fixture(scope="module")
def client():
    with open_test_client(FakeFactory()) as client:
        yield client


@settings(max_examples=40, deadline=None, suppress_health_check=list(HealthCheck))
@given(
    fields=st.dictionaries(st.sampled_from(FIELDS), VALUES, max_size=4),
    path=st.sampled_from([CHAT, "/v1/completions"]),
)
def test_no_body_makes_the_server_fail(client, fields, path):
    """Guards the promise of no 5xx for bad input: whatever the fields hold, it is answered or refused by name."""
    good = {"messages": [{"role": "user", "content": "hi"}]} if path == CHAT else {"prompt": "hi"}
    response = client.post(path, json={"model": "fake", **good, **fields})
    assert response.status_code in (200, 400, 409)
    if response.status_code != 200:
        assert response.json()["error"]["message"]


def speak(place, *parts):
    """What comes back for raw bytes, until the server closes or says nothing more."""
    host, port = place
    with socket.create_connection((host, port), timeout=PATIENCE_S) as client:
        try:
            for part in parts:
                client.sendall(part)
            client.shutdown(socket.SHUT_WR)
            return b"".join(iter(lambda: client.recv(65536), b""))
        except OSError:  # it hung up while we were speaking
            return b""


HEAD = (
    b"POST /v1/chat/completions HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
    b"Authorization: Bearer " + TOKEN.encode() + b"\r\n"
)
HOSTILE = {
    "no HTTP at all": ([b"\x16\x03\x01\x02\x00hello"], (b"HTTP/1.1 400",)),
    "a header without end": ([b"GET / HTTP/1.1\r\nX: " + b"a" * 200_000], (b"HTTP/1.1 400", b"")),
    "no host": ([b"GET /v1/models HTTP/1.1\r\n\r\n"], (b"HTTP/1.1 400",)),
    "two hosts": ([b"GET /health HTTP/1.1\r\nHost: localhost\r\nHost: evil\r\n\r\n"], (b"HTTP/1.1 400",)),
    "two lengths": ([HEAD + b"Content-Length: 2\r\nContent-Length: 3\r\n\r\n{}"], (b"HTTP/1.1 400",)),
    "a length that is none": ([HEAD + b"Content-Length: -1\r\n\r\n"], (b"HTTP/1.1 400",)),
    "a body that ends early": ([HEAD + b"Content-Length: 100\r\n\r\n{"], (b"",)),
    "chunks beyond the limit": (
        [
            HEAD + b"Transfer-Encoding: chunked\r\n\r\n",
            *[b"10000\r\n" + b"x" * 65536 + b"\r\n"] * 20,
            b"0\r\n\r\n",
        ],
        (b"HTTP/1.1 413",),
    ),
    "a path that escapes": (
        [b"GET /../../etc/passwd HTTP/1.1\r\nHost: localhost\r\n\r\n"],
        (b"HTTP/1.1 401",),
    ),
    "an upgrade": (
        [b"GET /v1/models HTTP/1.1\r\nHost: localhost\r\nConnection: upgrade\r\nUpgrade: websocket\r\n\r\n"],
        (b"HTTP/1.1 401",),
    ),
}


@pytest.fixture(scope="module")
def place():
    with live(FakeFactory()) as (_, url):
        yield "127.0.0.1", int(url.split(":")[2].split("/")[0])


@pytest.mark.parametrize(("parts", "starts"), HOSTILE.values(), ids=HOSTILE.keys())
def test_raw_bytes(place, parts, starts):
    """Guards the layer below JSON; and afterwards the server still answers."""
    assert speak(place, *parts)[:12] in starts
    body = json.dumps({"model": "fake", "messages": [{"role": "user", "content": "hi"}]}).encode()
    good = HEAD + b"Connection: close\r\nContent-Length: " + str(len(body)).encode() + b"\r\n\r\n" + body
    host, port = place
    with socket.create_connection((host, port), timeout=PATIENCE_S) as client:
        client.sendall(good)
        assert b"".join(iter(lambda: client.recv(65536), b"")).startswith(b"HTTP/1.1 200")
