"""The server, and unloading, on the bundled model: the real client, real tokens, another process."""

import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from edgekv import Runtime
from edgekv.models.catalog import bundled_model

openai = pytest.importorskip("openai")
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(bundled_model() is None, reason="the bundled model is not installed"),
]
STORY = "The lighthouse keeper wrote down every ship that passed, its sails, its flag and its hour. "
LEAF = 16


@pytest.fixture
def serve(data_dir):
    """Starts `edgekv serve` over the test's data directory; returns a client and how to end it."""
    root = Path(__file__).parents[2]
    folders = [root, root / "kernels", root / "storage", root / "tui"]
    environ = os.environ | {"PYTHONPATH": os.pathsep.join(map(str, folders)), "EDGEKV_TEMPERATURE": "0"}
    started = []

    def start():
        command = [sys.executable, "-m", "edgekv", "serve", "--port", "0", "--data-dir", str(data_dir)]
        process = subprocess.Popen(command, env=environ, text=True, stderr=subprocess.PIPE)
        started.append(process)
        url = re.search(r"http://\S+/v1", process.stderr.readline()).group()
        token = (data_dir / "server.token").read_text().strip()

        def stop():
            process.send_signal(signal.SIGTERM)
            return process.wait(30)

        return openai.OpenAI(base_url=url, api_key=token, timeout=120), stop

    yield start
    for process in started:
        process.kill()
        process.communicate()


def test_dialogues_are_reused_and_kept_ones_survive(serve):
    """Guards cached tokens that are real: within the server for any dialogue, over a restart for a named one."""

    def ask(messages, **options):
        answer = client.chat.completions.create(model=model, messages=messages, max_tokens=24, **options)
        messages.append({"role": "assistant", "content": answer.choices[0].message.content})
        return answer.usage

    client, stop = serve()
    model = client.models.list().data[0].id
    for options in ({}, {"extra_body": {"conversation": "kept"}}):
        messages = [{"role": "user", "content": STORY * 20}]
        first = ask(messages, **options)
        messages.append({"role": "user", "content": "What did he write down?"})
        second = ask(messages, **options)
        assert first.prompt_tokens_details.cached_tokens == 0
        assert first.total_tokens - second.prompt_tokens_details.cached_tokens <= LEAF
    assert stop() == 143
    client, stop = serve()
    messages.append({"role": "user", "content": "And when?"})
    third = ask(messages, **options)
    assert second.total_tokens - third.prompt_tokens_details.cached_tokens <= LEAF
    assert stop() == 143


def private_bytes():
    """RssAnon of this process."""
    status = Path("/proc/self/status").read_text()
    return int(re.search(r"RssAnon:\s+(\d+) kB", status).group(1)) * 1024


def test_unloading_returns_the_memory_and_comes_back_warm(data_dir):
    """Guards llama-cpp-python#1442: weights that are freed and stay with the process help nobody."""
    import edgekv.engine.build  # noqa: F401  torch's own memory is not the model's

    before = private_bytes()
    with Runtime(data_dir=data_dir, temperature=0) as runtime:
        chat = runtime.conversation("a")
        first = chat.send(STORY * 20, max_tokens=8).usage
        loaded = private_bytes()
        runtime.unload()
        unloaded = private_bytes()
        again = chat.send("What did he write down?", max_tokens=8).usage
    known = first.prompt_tokens + first.completion_tokens
    assert unloaded - before < (loaded - before) / 3, (before, loaded, unloaded)
    assert known - again.reused_tokens <= LEAF
    assert private_bytes() - before < (loaded - before) / 3
