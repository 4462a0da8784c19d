"""`edgekv run` and its relatives as a person or a program meets them: streams, exit codes, signals."""

import contextlib
import json
import os
import pty
import select
import signal
import sqlite3
from contextlib import closing
from pathlib import Path

import pytest
from patience import PATIENCE_S, wait_until

from edgekv.conversation.kept import kept_conversations, opened

LONG = {"answer": "word " * 4000, "token_s": 0.01}


def kept_turns(data_dir, name):
    from edgekv.conversation.turns import TurnTree

    tree = TurnTree()
    with opened(data_dir) as library:
        library.journal(name).load(tree)
    return tree.path(tree.head)


def read_until(stream, text):
    seen = ""
    while text not in seen:
        character = stream.read(1)
        assert character, f"ended after {seen!r}"
        seen += character
    return seen


def test_run_prints_the_answer_and_keeps_nothing(edgekv, data_dir):
    """Guards the simplest call; without -c the data directory is not even made."""
    done = edgekv("run", "hi")
    assert (done.returncode, done.stdout) == (0, "hello there\n"), done.stderr
    assert not data_dir.exists()


def test_run_json_is_one_object_of_the_promised_shape(edgekv):
    """Guards programs that read it."""
    done = edgekv("run", "hi", "--json", "--max-tokens", "4")
    answer = json.loads(done.stdout)
    assert answer["text"] == "hell"
    assert answer["finish_reason"] == "length"
    assert set(answer["usage"]) == {"prompt_tokens", "completion_tokens", "reused_tokens"}
    assert set(answer["timings"]) == {"ttft_s", "prefill_tokens_per_s", "decode_tokens_per_s"}
    assert answer["exactness"] == "exact"
    assert answer["attention"]["promoted_bytes"] == 0
    assert {"device_bytes", "host_bytes", "disk_bytes"} <= set(answer["cache"])


def test_run_reads_stdin_and_continues_a_conversation(edgekv, data_dir):
    """Guards `run -` and -c: the second process goes on from the first."""
    edgekv("run", "-", "-c", "trip", stdin="one\n")
    edgekv("run", "two", "-c", "trip")
    assert [turn.user for turn in kept_turns(data_dir, "trip")] == ["one\n", "two"]
    listed = json.loads(edgekv("conversations", "--json").stdout)["conversations"]
    assert [(entry["name"], entry["num_turns"]) for entry in listed] == [("trip", 2)]


def test_private_leaves_no_trace(edgekv, data_dir):
    """Guards --private: nothing is made, no lock is taken; a name asked for inside is refused."""
    assert edgekv("run", "xyzzy-canary", "-c", "secret", "--private").returncode == 0
    done = edgekv("chat", "secret", "--private", stdin="xyzzy-canary\n/new kept\n/quit\n")
    assert (done.stdout, data_dir.exists()) == ("hello there\n", False)
    assert "keeps nothing on disk" in done.stderr


@pytest.mark.parametrize(
    ("args", "code", "kind", "message"),
    [
        (["run", "x", "--temprature", "1"], 2, "UsageError", "--temperature"),
        (["run", "x", "--temperature", "warm"], 2, "ConfigError", "temperature"),
        (["run", "x", "--json-schema", "{}"], 1, "Unsupported", "JSON schema"),
        (["run", ""], 2, "ConfigError", "empty"),
        (["run", "x" * 9000, "--attention", "exact"], 1, "ContextOverflow", "window"),
        (["forget", "nobody", "--yes"], 1, "ConversationError", "nobody"),
    ],
)
def test_errors_are_one_line_or_one_object(edgekv, args, code, kind, message):
    """Guards the outer edge: no traceback, stdout only with --json, an exit code that is not 0."""
    plain = edgekv(*args)
    assert (plain.returncode, plain.stdout) == (code, "")
    assert plain.stderr.count("\n") == 1
    assert message in plain.stderr
    as_json = edgekv(*args, "--json")
    error = json.loads(as_json.stdout)["error"]
    assert (as_json.returncode, error["type"]) == (code, kind)
    assert message in error["message"]


def test_unknown_environment_variable_is_an_error(edgekv):
    """Guards EDGEKV_* misspelt."""
    done = edgekv("run", "x", env={"EDGEKV_MODLE": "x"})
    assert done.returncode == 2
    assert "did you mean EDGEKV_MODEL" in done.stderr


def test_internal_error_is_logged_without_what_was_said(edgekv, data_dir):
    """Guards privacy: the log tells where it happened, never the text of the error or the chat."""
    done = edgekv("run", "canary-question", "-c", "a", error=ValueError("canary-detail"))
    assert done.returncode == 1
    assert "ValueError" in done.stderr
    assert "Traceback" not in done.stderr
    log = (data_dir / "edgekv.log").read_text()
    assert "ValueError" in log
    assert "generate" in log
    assert "canary" not in log
    assert "Traceback" in edgekv("run", "x", "--debug", error=ValueError("boom")).stderr


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_keeps_the_partial_answer(edgekv, data_dir, number, code):
    """Guards Ctrl+C and kill: the text so far is printed, kept and marked."""
    process = edgekv("run", "tell", "-c", "a", "--max-tokens", "4000", start=True, **LONG)
    read_until(process.stdout, "word word")
    process.send_signal(number)
    process.communicate(timeout=PATIENCE_S)
    assert process.returncode == code
    (turn,) = kept_turns(data_dir, "a")
    assert turn.state == "stopped"
    assert turn.answer.startswith("word word")


def test_a_signal_with_json_still_prints_one_object(edgekv, tmp_path):
    """Guards --json under Ctrl+C."""
    said = tmp_path / "said"
    process = edgekv("run", "tell", "--json", "--max-tokens", "4000", start=True, marks=str(said), **LONG)
    wait_until(said.exists, "the first token")
    process.send_signal(signal.SIGINT)
    stdout, _ = process.communicate(timeout=PATIENCE_S)
    assert json.loads(stdout)["finish_reason"] == "cancelled"
    assert process.returncode == 130


def test_a_closed_pipe_ends_silently_and_keeps_the_part(edgekv, data_dir):
    """Guards `edgekv run ... | head`: no traceback, no "Exception ignored"."""
    edgekv("run", "x", "-c", "b")  # the notice of the first start
    process = edgekv("run", "tell", "-c", "a", "--max-tokens", "4000", start=True, **LONG)
    read_until(process.stdout, "word")
    process.stdout.close()
    assert process.wait(timeout=PATIENCE_S) == 141
    assert process.stderr.read() == ""
    assert kept_turns(data_dir, "a")[0].state == "stopped"


def test_killed_in_mid_turn_the_message_is_there_and_the_chat_goes_on(edgekv, data_dir):
    """Guards kill -9: what was acknowledged is kept, the name is free again, the next turn works."""
    process = edgekv("run", "first", "-c", "a", "--max-tokens", "4000", start=True, **LONG)
    read_until(process.stdout, "word")
    process.kill()
    process.wait()
    assert [(turn.user, turn.state) for turn in kept_turns(data_dir, "a")] == [("first", "pending")]
    assert edgekv("run", "second", "-c", "a").returncode == 0
    assert [turn.user for turn in kept_turns(data_dir, "a")] == ["first", "second"]


def test_a_second_process_on_the_same_data(edgekv, data_dir):
    """Guards two at once: the second answers, goes on from what is kept, keeps nothing and says so."""
    first = edgekv("run", "tell", "-c", "a", "--max-tokens", "4000", start=True, **LONG)
    read_until(first.stdout, "word")
    for name, tokens in (("a", 40), ("new", 20)):  # "a" begins with the question under way
        second = edgekv("run", "more", "-c", name, "--json")
        answer = json.loads(second.stdout)
        assert (second.returncode, answer["text"]) == (0, "hello there"), second.stderr
        assert answer["usage"]["prompt_tokens"] > tokens
        assert [
            f"nothing is kept on disk: {data_dir} is in use by process {first.pid}" in n
            for n in answer["notices"]
        ] == [True]
    assert [turn.user for turn in kept_turns(data_dir, "a")] == ["tell"]
    unkept = edgekv("run", "hi")
    assert (unkept.returncode, unkept.stdout) == (0, "hello there\n")
    assert unkept.stderr == ""


def test_forget_destroys(edgekv, data_dir):
    """Guards forget: without a terminal nobody is asked; nothing of the text remains."""
    edgekv("run", "xyzzy-canary", "-c", "a")
    done = edgekv("forget", "a")
    assert (done.returncode, done.stderr) == (0, "forgotten: a\n")
    assert kept_conversations(data_dir) == []
    assert all(b"xyzzy-canary" not in path.read_bytes() for path in data_dir.rglob("*") if path.is_file())


def test_chat_reads_a_pipe(edgekv, data_dir):
    """Guards piped chat: each line a message, answers alone on stdout, the end of input ends it."""
    done = edgekv("chat", "a", "--plain", stdin="one\n\n/nonsense\ntwo\n")
    assert (done.returncode, done.stdout) == (0, "hello there\nhello there\n"), done.stderr
    assert "unknown command /nonsense" in done.stderr
    assert "> " not in done.stderr
    assert [turn.user for turn in kept_turns(data_dir, "a")] == ["one", "two"]


def test_forget_makes_no_directory(edgekv, data_dir):
    """Guards a misspelt --data-dir: it is told, not made."""
    assert edgekv("forget", "a").returncode == 1
    assert not data_dir.exists()


def test_a_damaged_conversation_is_marked_and_can_be_forgotten(edgekv, data_dir):
    """Guards the listing against one flipped row, in text and in JSON, and forget's way out of it."""
    for name in ("good", "bad"):
        edgekv("run", "x", "-c", name)
    with closing(sqlite3.connect(data_dir / "transcripts.db")) as db:
        db.execute("UPDATE turns SET content = x'00' WHERE id = 2")
        db.commit()
    lines = edgekv("conversations").stdout.splitlines()
    assert [("bad" in line, "[damaged]" in line) for line in sorted(lines, key=len)] == [
        (False, False),
        (True, True),
    ]
    listed = json.loads(edgekv("conversations", "--json").stdout)["conversations"]
    assert {entry["name"]: entry["is_damaged"] for entry in listed} == {"good": False, "bad": True}
    refused = edgekv("run", "y", "-c", "bad")
    assert refused.returncode == 1
    assert "turn 0 does not match" in refused.stderr, "the first of that conversation"
    assert edgekv("forget", "bad").returncode == 0
    assert [info.name for info in kept_conversations(data_dir)] == ["good"]


def test_chat_from_a_pipe_tells_that_the_last_message_failed(edgekv):
    """Guards scripts: exit code 1 for a failed last message, 0 when a later one was answered."""
    long, exact = "x" * 9000, ("--attention", "exact")
    assert edgekv("chat", "a", "--plain", *exact, stdin=f"one\n{long}\n").returncode == 1
    assert edgekv("chat", "a", "--plain", *exact, stdin=f"{long}\n/history\n/quit\n").returncode == 1
    assert edgekv("chat", "a", "--plain", *exact, stdin=f"{long}\ntwo\n").returncode == 0


def test_chat_commands(edgekv):
    """Guards the slash commands on a reopened conversation."""
    edgekv("chat", "a", stdin="one\ntwo\n")
    lines = "/history\n/edit 0 ONE\n/edit x\n/branches\n/switch 1\n/history\n/regen\n/help\n/forget\nlost\n"
    done = edgekv("chat", "a", stdin=lines)
    assert done.returncode == 0
    assert "0 > one\nhello there\n1 > two\nhello there\n" in done.stdout
    assert "* 2: 1 turns, ONE" in done.stdout
    assert "write /edit N TEXT" in done.stderr
    assert "tokens restored" in done.stderr
    assert "forgotten: a" in done.stderr
    assert json.loads(edgekv("conversations", "--json").stdout) == {"conversations": []}


def test_chat_ctrl_c_stops_the_answer_and_goes_on(edgekv, data_dir):
    """Guards Ctrl+C in a chat: it ends the answer, not the chat."""
    process = edgekv("chat", "a", "--max-tokens", "4000", start=True, **LONG)
    process.stdin.write("tell\n")
    process.stdin.flush()
    read_until(process.stdout, "word word")
    process.send_signal(signal.SIGINT)
    read_until(process.stdout, "[stopped]\n")
    process.stdin.write("/history\n")
    process.stdin.close()
    process.stdin = None
    stdout, stderr = process.communicate(timeout=PATIENCE_S)
    assert process.returncode == 0, stderr
    assert "0 > tell\nword word" in stdout
    assert kept_turns(data_dir, "a")[0].state == "stopped"


@pytest.mark.parametrize(("term", "is_full"), [("xterm", True), ("dumb", False)])
def test_a_terminal_that_cannot_draw_gets_the_plain_chat(edgekv, term, is_full):
    """Guards TERM=dumb (an editor's shell, a log): a full screen is unreadable there, and so are wiped lines."""
    leader, follower = pty.openpty()
    child = edgekv("chat", "a", "--private", start=True, terminal=follower, env={"TERM": term}, block_s=0.01)
    os.close(follower)
    os.write(leader, b"hi\n/quit\n")
    seen = b""
    with contextlib.suppress(OSError):  # the terminal's other end was closed
        while select.select([leader], [], [], PATIENCE_S)[0] and (part := os.read(leader, 1024)):
            seen += part
    os.close(leader)
    assert child.wait(PATIENCE_S) == 0, seen
    assert (b"full screen" in seen, b"hello there" in seen) == (is_full, not is_full), seen
    assert b"\x1b" not in seen


def test_chat_goes_on_privately_when_the_data_is_in_use(edgekv):
    """Guards the second chat: it says that it is not kept, and works."""
    first = edgekv("chat", "a", "--max-tokens", "4000", start=True, **LONG)
    first.stdin.write("tell\n")
    first.stdin.flush()
    read_until(first.stdout, "word")
    second = edgekv("chat", "a", stdin="hi\n")
    assert (second.returncode, second.stdout) == (0, "hello there\n")
    assert "not kept" in second.stderr


def test_a_log_that_is_a_pipe_is_not_waited_for(edgekv, data_dir):
    """Guards an internal error beside a planted edgekv.log: the program hung, deaf to signals."""
    data_dir.mkdir(exist_ok=True)
    os.mkfifo(data_dir / "edgekv.log")
    done = edgekv("run", "hi", error=None, answer=7)
    assert (done.returncode, "internal error" in done.stderr) == (1, True), done.stderr
    assert "--debug shows where" in done.stderr


@pytest.mark.parametrize("args", [("run", "hi"), ("run", "hi", "--json"), ("--help",)], ids=" ".join)
def test_output_that_cannot_be_written_is_one_line(edgekv, args):
    """Guards a full disk behind `>`: it was an internal error, for some commands a traceback."""
    with Path("/dev/full").open("w") as full:
        process = edgekv(*args, start=True, stdout=full, env={"PYTHONUNBUFFERED": ""})
        _, told = process.communicate(timeout=60)
    assert process.returncode == 1, told
    assert [line for line in told.splitlines() if "cannot be written: No space left" in line]
    assert "Traceback" not in told
    assert "internal" not in told
