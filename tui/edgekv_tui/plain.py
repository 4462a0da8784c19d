"""The line-mode chat: one line in, one answer out; works on a terminal and in a pipe.

Knows the public API, a few slash commands and what to say about an answer. Prompts and details are for
people, so they go to stderr, and prompts only to a terminal; the answers alone go to stdout.
"""

from __future__ import annotations

import sys
import time
from typing import TYPE_CHECKING, Literal

from edgekv import (
    ConversationError,
    Done,
    EdgeKVError,
    Notice,
    PrefillProgress,
    Result,
    StoreError,
    TextDelta,
)
from edgekv.terminal import ProgressLine
from edgekv_tui.lines import detail_line, pending_line, restored_line, turn_lines

if TYPE_CHECKING:
    from collections.abc import Callable

    from edgekv import Conversation, Runtime, Stream

EXIT_INTERRUPTED = 130
HELP = """\
/new [NAME]     begin or open another conversation (without NAME: a private one)
/history        the turns so far, with their numbers
/edit N TEXT    ask differently at turn N; the old branch stays
/branches       all branches; /switch ID goes to one
/regen          answer the last message again
/forget         destroy this conversation and leave
/quit           leave (so does the end of input)
Ctrl+C stops an answer and keeps what there is of it; at the prompt it leaves."""
Next = Literal["go on", "leave"]


def run(runtime: Runtime, name: str, *, private: bool = False) -> int:
    """Chat until the end of input; returns the exit code. Raises EdgeKVError if `name` cannot be opened."""
    return PlainChat(runtime, _open(runtime, name, private=private)).loop()


def _open(runtime: Runtime, name: str, *, private: bool) -> Conversation:
    """The conversation, or a private copy of it where it cannot be kept: the chat goes on."""
    try:
        return runtime.conversation(name, private=private)
    except StoreError as error:
        if runtime.degraded is None:
            raise
        _say(f"{error}")
        _say("this chat is private: it is not kept")
        return runtime.conversation(name, keep=False)


class PlainChat:
    """One session at the prompt."""

    def __init__(self, runtime: Runtime, conversation: Conversation) -> None:
        self._runtime = runtime
        self._is_terminal = sys.stdin.isatty()
        self._reopened_tokens = 0
        self._has_failed = False
        self._commands: dict[str, Callable[[str], Next]] = {
            "/help": self._help,
            "/quit": lambda _rest: "leave",
            "/new": self._new,
            "/history": self._history,
            "/edit": self._edit,
            "/regen": self._regen,
            "/branches": self._branches,
            "/switch": self._switch,
            "/forget": self._forget,
        }
        self._enter(conversation)

    def loop(self) -> int:
        """Read lines until told to leave. A pipe is told by the code 1 that its last message had an error."""
        while True:
            try:
                line = self._read()
            except KeyboardInterrupt:
                _say("")
                return EXIT_INTERRUPTED
            try:
                if line is None or (line and self._handle(line) == "leave"):
                    return int(self._has_failed and not self._is_terminal)
            except EdgeKVError as error:
                self._has_failed = True
                _say(str(error))

    def _read(self) -> str | None:
        """One line without blanks at its ends; None at the end of input."""
        if self._is_terminal:
            sys.stderr.write("private> " if self._conversation.private else "> ")
            sys.stderr.flush()
        line = sys.stdin.readline()
        return line.strip() if line else None

    def _handle(self, line: str) -> Next:
        if not line.startswith("/"):
            self._answer(self._conversation.stream(line))
            return "go on"
        command, _, rest = line.partition(" ")
        if command not in self._commands:
            _say(f"unknown command {command}; /help lists them")
            return "go on"
        return self._commands[command](rest.strip())

    def _answer(self, stream: Stream) -> None:
        """Print the answer as it comes. Ctrl+C stops it; SIGTERM goes through, and closing keeps the part."""
        with stream:
            try:
                self._show(stream)
            except KeyboardInterrupt:
                stream.cancel()
                self._show(stream)

    def _show(self, stream: Stream) -> None:
        began = time.monotonic()
        progress = ProgressLine(sys.stderr)
        for event in stream:
            match event:
                case PrefillProgress():
                    self._tell_restored(event, time.monotonic() - began)
                    progress.show(event)
                case TextDelta(text):
                    progress.clear()
                    sys.stdout.write(text)
                    sys.stdout.flush()
                case Notice(message):
                    progress.clear()
                    _say(message)
                case Done(result):
                    progress.clear()
                    self._end(result)

    def _end(self, result: Result) -> None:
        self._has_failed = False
        marks = {"cancelled": " [stopped]", "length": " [...]", "context": " [window full]"}
        sys.stdout.write(marks.get(result.finish_reason, "") + "\n")
        sys.stdout.flush()
        _say(detail_line(result))

    def _tell_restored(self, progress: PrefillProgress, seconds: float) -> None:
        """Once after reopening: how much of the conversation did not have to be computed again."""
        if self._reopened_tokens:
            _say(restored_line(progress, self._reopened_tokens, seconds))
            self._reopened_tokens = 0

    def _enter(self, conversation: Conversation) -> None:
        self._conversation = conversation
        turns = conversation.history()
        self._reopened_tokens = conversation.num_tokens() if turns else 0
        if self._is_terminal:
            kind = "private, nothing is kept" if conversation.private else f"{len(turns)} turns so far"
            _say(f"{conversation.name} ({kind}); /help lists commands")
        if turns and turns[-1].state == "pending":
            _say(pending_line(turns[-1]))

    def _help(self, _rest: str) -> Next:
        _say(HELP)
        return "go on"

    def _new(self, rest: str) -> Next:
        self._enter(self._runtime.conversation(rest or None, private=not rest))
        return "go on"

    def _history(self, _rest: str) -> Next:
        for number, turn in enumerate(self._conversation.history()):
            sys.stdout.write(turn_lines(number, turn))
        sys.stdout.flush()
        return "go on"

    def _edit(self, rest: str) -> Next:
        number, _, text = rest.partition(" ")
        if not number.isdecimal() or not text.strip():
            raise ConversationError("write /edit N TEXT; /history shows the numbers")
        self._answer(self._conversation.stream_edit(int(number), text.strip()))
        return "go on"

    def _regen(self, _rest: str) -> Next:
        self._answer(self._conversation.stream_regenerate())
        return "go on"

    def _branches(self, _rest: str) -> Next:
        for branch in self._conversation.branches():
            mark = "*" if branch.is_current else " "
            sys.stdout.write(f"{mark} {branch.id}: {branch.num_turns} turns, {branch.last_user_text}\n")
        sys.stdout.flush()
        return "go on"

    def _switch(self, rest: str) -> Next:
        if not rest.isdecimal():
            raise ConversationError("write /switch ID; /branches shows the ids")
        self._conversation.switch(int(rest))
        return "go on"

    def _forget(self, _rest: str) -> Next:
        conversation = self._conversation
        self._runtime.forget(conversation.name, private=conversation.private)
        _say(f"forgotten: {conversation.name}")
        return "leave"


def _say(message: str) -> None:
    sys.stderr.write(message + "\n")
    sys.stderr.flush()
