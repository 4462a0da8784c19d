"""`edgekv serve` as a real process: what it says, who may ask, how it ends."""

import contextlib
import json
import re
import signal
import socket
import stat
import sys
import urllib.error
import urllib.request
from functools import partial

import pytest
from fakes import FakeFactory
from typer.testing import CliRunner

from edgekv import Runtime
from edgekv.cli import serve
from edgekv.cli.commands import app
from edgekv.cli.serve import _listen
from edgekv.errors import ConfigError

BODY = json.dumps({"model": "fake", "messages": [{"role": "user", "content": "hi"}]})


def ask(url, token):
    headers = {"Content-Type": "application/json", "Authorization": f"Bearer {token}"}
    request = urllib.request.Request(f"{url}/chat/completions", BODY.encode(), headers)
    with urllib.request.urlopen(request, timeout=30) as response:
        return json.load(response)["choices"][0]["message"]["content"]


def test_serving_on_a_port(edgekv, data_dir):
    """Guards the command: one line that says where, a token made private, an answer, and an end by Ctrl+C."""
    process = edgekv("serve", "--port", "0", start=True)
    line = process.stderr.readline()
    url = re.search(r"http://127\.0\.0\.1:\d+/v1", line).group()
    path = data_dir / "server.token"
    assert f"the bearer token is in {path}" in line
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert ask(url, path.read_text().strip()) == "hello there"
    with pytest.raises(urllib.error.HTTPError, match="401"):
        ask(url, "wrong")
    process.send_signal(signal.SIGINT)
    assert process.wait(60) == 130
    assert "Traceback" not in process.stderr.read()


def test_serving_on_a_unix_socket(edgekv, tmp_path):
    """Guards the socket: private, without a token when told so, gone at the end; what is being said is stopped."""
    path = tmp_path / "s"
    process = edgekv(
        "serve", "--socket", str(path), "--no-token", start=True, answer="x" * 100_000, token_s=0.001
    )
    assert "every program that reaches it may use it" in process.stderr.readline()
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    with socket.socket(socket.AF_UNIX) as client:
        client.connect(str(path))
        client.sendall(b"GET /v1/models HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n")
        answer = b"".join(iter(lambda: client.recv(65536), b""))
    assert answer.startswith(b"HTTP/1.1 200")
    assert b'"id":"fake"' in answer
    with socket.socket(socket.AF_UNIX) as client:
        client.connect(str(path))
        body = json.dumps({**json.loads(BODY), "stream": True, "max_tokens": 100_000}).encode()
        head = f"POST /v1/chat/completions HTTP/1.1\r\nHost: localhost\r\nContent-Length: {len(body)}\r\n"
        client.sendall(head.encode() + b"Content-Type: application/json\r\n\r\n" + body)
        assert client.recv(12) == b"HTTP/1.1 200"
        process.send_signal(signal.SIGTERM)
        assert process.wait(60) == 143
    assert not path.exists()
    assert "Traceback" not in process.stderr.read()


def test_missing_libraries_are_named(monkeypatch):
    """Guards an installation without the extra: one line that says what to install."""
    for name in [name for name in sys.modules if name.startswith(("edgekv.server", "uvicorn", "starlette"))]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.delattr("edgekv.server", raising=False)
    monkeypatch.setitem(sys.modules, "starlette", None)
    with (
        contextlib.ExitStack() as stack,
        pytest.raises(ConfigError, match="starlette: pip install"),
    ):
        _listen(0, None, stack)


def test_what_makes_no_sense_is_told_before_the_model_is_loaded(edgekv):
    """Guards mistakes on the command line: one line and exit code 2."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = str(taken.getsockname()[1])
        done = edgekv("serve", "--port", port)
        assert (done.returncode, done.stderr.count("\n")) == (2, 1)
        assert "choose another --port" in done.stderr
    done = edgekv("serve", "--no-token", "--token-file", "x")
    assert (done.returncode, "exclude each other" in done.stderr) == (2, True)


def test_the_token_may_lie_elsewhere(monkeypatch, data_dir, tmp_path):
    """Guards --token-file: made there and nowhere else, told, and asked for."""
    served = []
    path = tmp_path / "elsewhere"
    monkeypatch.setattr(serve, "_serve", lambda *args: served.append(args))
    monkeypatch.setattr(serve, "Runtime", partial(Runtime, engine_factory=FakeFactory()))
    arguments = ["serve", "--port", "0", "--data-dir", str(data_dir), "--token-file", str(path)]
    done = CliRunner().invoke(app, arguments)
    assert done.exception is None
    (_, _, _, (token, told), _) = served[0]
    assert (path.read_text(), stat.S_IMODE(path.stat().st_mode)) == (f"{token}\n", 0o600)
    assert told == f"the bearer token is in {path}"
    assert not (data_dir / "server.token").exists()
