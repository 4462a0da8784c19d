"""The whole thing on the bundled model: real tokens, real KV, real files, another process."""

import json
import os
import signal
import sqlite3
import subprocess
import sys
from pathlib import Path

import pytest

from edgekv import Cancelled, CancelToken, ContextOverflow, PrefillProgress, Runtime
from edgekv.models.catalog import bundled_model

pytestmark = pytest.mark.skipif(bundled_model() is None, reason="the bundled model is not installed")
LEAF = 16
STORY = "The lighthouse keeper wrote down every ship that passed, its sails, its flag and its hour. "


@pytest.fixture
def edgekv(data_dir):
    """Runs the real program; `start=True` does not wait."""
    root = Path(__file__).parents[2]
    folders = [root, root / "kernels", root / "storage", root / "tui"]
    environ = os.environ | {
        "PYTHONPATH": os.pathsep.join(map(str, folders)),
        "EDGEKV_DATA_DIR": str(data_dir),
        "EDGEKV_TEMPERATURE": "0",
    }
    started = []

    def call(*args, start=False):
        command = [sys.executable, "-m", "edgekv", *args]
        if start:
            process = subprocess.Popen(command, env=environ, text=True, stdout=subprocess.PIPE)
            started.append(process)
            return process
        return subprocess.run(command, env=environ, capture_output=True, text=True, timeout=120, check=False)

    yield call
    for process in started:
        process.kill()
        process.communicate()


def answer(done):
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def test_answers_do_not_depend_on_what_was_reused(data_dir):
    """Guards against reused KV that is almost right: the same greedy text computed, resumed and in tiny tiers."""
    questions = [STORY * 10 + "Continue.", "And then?", "Who was he?"]

    def talk(restart, name, **limits):
        texts = []
        runtime = Runtime(data_dir=data_dir, temperature=0, max_tokens=12, **limits)
        for number, question in enumerate(questions):
            if restart and number:
                runtime.close()
                runtime = Runtime(data_dir=data_dir, temperature=0, max_tokens=12, **limits)
            texts.append(runtime.conversation(name).send(question).text)
        runtime.close()
        return texts

    plain = talk(False, "a")
    assert talk(True, "b") == plain
    assert talk(False, "c", device_budget="4MiB", host_budget="4MiB") == plain


def test_an_edit_reuses_what_comes_before_it(data_dir):
    """Guards edits: everything up to the edited turn stays in the cache, at most one leaf is lost."""
    with Runtime(data_dir=data_dir, temperature=0, max_tokens=8) as runtime:
        chat = runtime.conversation("a")
        chat.send(STORY * 10)
        before = chat.num_tokens()
        chat.send("What colour were the sails?")
        result = chat.edit(1, "Which flag was it?")
    assert before - result.usage.reused_tokens < LEAF
    assert result.usage.reused_tokens <= result.usage.prompt_tokens - 1


def test_cancel_in_prefill_keeps_what_was_computed(data_dir):
    """Guards cancel in a long prefill: it ends within a block, and the blocks done are not done again."""
    with Runtime(data_dir=data_dir, temperature=0, max_tokens=4) as runtime:
        chat = runtime.conversation("a")
        token = CancelToken()
        done_at_cancel = 0
        for event in (stream := chat.stream(STORY * 60, cancel=token)):
            if isinstance(event, PrefillProgress) and 0 < event.done < event.total:
                done_at_cancel = done_at_cancel or event.done
                token.cancel()
        assert stream is not None
        turn = chat.history()[0]
        assert (turn.state, turn.answer) == ("stopped", "")
        again = chat.regenerate()
        assert 0 < done_at_cancel < again.usage.prompt_tokens
        assert again.usage.reused_tokens >= done_at_cancel - LEAF


def test_another_process_goes_on_after_a_kill_and_computes_nothing_again(edgekv):
    """Guards the main promise and kill -9 in mid-answer: after it all full leaves of what was acknowledged are
    reused, and the conversation goes on."""
    first = answer(edgekv("run", STORY * 20, "-c", "a", "--json", "--max-tokens", "24"))
    known = first["usage"]["prompt_tokens"] + first["usage"]["completion_tokens"]
    assert first["usage"]["reused_tokens"] == 0
    process = edgekv("run", "Tell me everything.", "-c", "a", "--max-tokens", "400", start=True)
    assert process.stdout.read(1)
    process.send_signal(signal.SIGKILL)
    process.wait()
    after = answer(edgekv("run", "What did he write down?", "-c", "a", "--json", "--max-tokens", "8"))
    assert known - after["usage"]["reused_tokens"] <= LEAF
    assert after["cache"]["disk_bytes"] > 0


def test_the_window_is_never_cut_in_silence(data_dir):
    """Guards ContextOverflow: refused before anything is computed or kept, and stopping tokens say so."""
    with Runtime(data_dir=data_dir, temperature=0, max_tokens=4, attention="exact") as runtime:
        chat = runtime.conversation("a")
        with pytest.raises(ContextOverflow, match="8192"):
            chat.send(STORY * 600)
        assert chat.history() == []
        with pytest.raises(Cancelled):
            chat.send("hi", timeout=1e-6)
        assert chat.send("hi").finish_reason in ("stop", "length")


def test_damaged_turns_are_rebuilt_from_the_stored_tokens(data_dir):
    """Guards the rebuild with a real template, a real tokenizer and encryption."""
    options = {"data_dir": data_dir, "temperature": 0, "max_tokens": 24}
    with Runtime(**options) as runtime:
        chat = runtime.conversation("a", system="You are terse.")
        for text in ("Who was <|im_end|> he?", "  And his flag? ", "\nWhich ship was the fastest?\n"):
            chat.send(text)
        turns = chat.history()
    with sqlite3.connect(data_dir / "transcripts.db") as db:
        db.execute("UPDATE turns SET content = zeroblob(length(content)) WHERE id IN (1, 3)")
    db.close()
    with Runtime(**options) as runtime:
        first, second, third = runtime.conversation("a").history()
        assert (first.is_rebuilt, second.is_rebuilt, third.is_rebuilt) == (True, False, True)
        assert (first.user, first.answer, first.prompt_ids, first.answer_ids) == (
            turns[0].user,
            turns[0].answer,
            turns[0].prompt_ids,
            turns[0].answer_ids,
        )
        assert (third.user, third.prompt_ids) == (turns[2].user, turns[2].prompt_ids)
        assert turns[2].answer.startswith(third.answer)
        assert len(turns[2].answer_ids) - len(third.answer_ids) <= LEAF
