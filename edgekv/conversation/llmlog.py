"""The logs of `llm`, both forms: threads of shared messages since 0.36, conversations of responses before.

Knows llm's tables, and that the file may be hostile: rows, texts and steps are bounded, and a schema that computes
is never followed. Both forms may have rows in one file: after an update old conversations stay where they were.
"""

from __future__ import annotations

import contextlib
import sqlite3
from typing import TYPE_CHECKING
from urllib.parse import quote

import msgspec

from edgekv.conversation import foreign
from edgekv.conversation.dialogue import JOINT
from edgekv.conversation.foreign import ForeignChat, Said, chat_of
from edgekv.errors import ConversationError

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

OLD = {"responses", "conversations"}
NEW = {"threads", "messages", "parts"}
LARGEST_LOG_TEXT = 512 << 20
"""Characters of all threads together: forks share messages, so a small file can hold many long threads."""


def from_llm(path: Path) -> list[ForeignChat]:
    """All conversations in logs.db at `path`. Raises ConversationError."""
    try:
        with contextlib.closing(_opened(path)) as db:
            return [chat for chat in _chats(db) if chat.said or chat.refusal]
    except (sqlite3.Error, msgspec.MsgspecError, RecursionError) as error:
        raise ConversationError(f"{path} is no log of llm's that can be read: {error}") from error


def _opened(path: Path) -> sqlite3.Connection:
    """Read-only and mistrusted: nothing in the schema runs, and nothing runs for long."""
    db = sqlite3.connect(f"file:{quote(str(path.absolute()))}?mode=ro", uri=True)
    for pragma in ("trusted_schema = OFF", "query_only = ON", "temp_store = MEMORY", "cell_size_check = ON"):
        db.execute(f"PRAGMA {pragma}")
    db.setlimit(sqlite3.SQLITE_LIMIT_LENGTH, foreign.LARGEST_TEXT)
    steps_left = [foreign.MOST_SQLITE_STEPS // 10_000]

    def is_too_long() -> bool:
        steps_left[0] -= 1
        return steps_left[0] < 0

    db.set_progress_handler(is_too_long, 10_000)
    return db


def _chats(db: sqlite3.Connection) -> Iterator[ForeignChat]:
    tables = {name for (name,) in db.execute("SELECT name FROM sqlite_master WHERE type = 'table'")}
    if not (tables >= NEW or tables >= OLD):
        raise ConversationError(
            "this database is no log of llm's: it has no tables threads, messages and parts, "
            "nor responses and conversations"
        )
    threads: list[tuple[object, object, object]] = []
    if tables >= NEW:
        rows = db.execute("SELECT id, name, tip_message_hash FROM threads ORDER BY id")
        threads = rows.fetchmany(foreign.MOST_ROWS + 1)
        if len(threads) > foreign.MOST_ROWS:
            raise _too_many("threads")
    if tables >= OLD:  # a conversation that went on since has a thread of the same id, which has all of it
        yield from _old_chats(db, {thread[0] for thread in threads})
    bounds = _Bounds()
    for _, name, tip in threads:
        messages = list(_branch(db, tip, bounds, has_fragments="fragments" in tables))
        yield chat_of(str(name or "untitled"), reversed(messages))


def _old_chats(db: sqlite3.Connection, known: set[object]) -> Iterator[ForeignChat]:
    rows = db.execute(
        "SELECT c.name, r.conversation_id, r.system, r.prompt, r.response FROM responses r "
        "JOIN conversations c ON c.id = r.conversation_id ORDER BY r.conversation_id, r.id LIMIT ?",
        (foreign.MOST_ROWS + 1,),
    )
    messages: dict[object, tuple[str, list[Said]]] = {}
    for number, (name, conversation, system, prompt, response) in enumerate(rows):
        if number == foreign.MOST_ROWS:
            raise _too_many("answers")
        if conversation in known:
            continue
        _, said = messages.setdefault(conversation, (str(name or "untitled"), []))
        if isinstance(system, str) and system and not said:
            said.append(Said("system", system))
        said += [Said("user", str(prompt or "")), Said("assistant", str(response or ""))]
    yield from (chat_of(name, said) for name, said in messages.values())


def _branch(db: sqlite3.Connection, tip: object, bounds: _Bounds, *, has_fragments: bool) -> Iterator[Said]:
    """A thread's messages, latest first. A fork is a thread of its own, so each has one branch only."""
    seen = set[object]()
    while tip is not None and tip not in seen:
        seen.add(tip)
        row = db.execute("SELECT role, parent_hash FROM messages WHERE hash = ?", (tip,)).fetchone()
        if row is None:
            return
        texts: list[str] = []
        num_left_out = 0
        parts = db.execute(
            "SELECT type, text, payload FROM parts WHERE message_hash = ? ORDER BY position", (tip,)
        )
        for kind, text, payload in parts:
            if kind == "text" and text is None and has_fragments and isinstance(payload, str):
                text = _of_fragments(db, payload)  # noqa: PLW2901
            if kind == "text" and isinstance(text, str):
                texts.append(text)
            else:
                num_left_out += 1
            bounds.count(texts[-1] if texts else "")
        bounds.count("")
        role, tip = str(row[0]), row[1]
        yield Said(role, JOINT.join(texts), num_left_out)


class _Piece(msgspec.Struct):
    fragment: int | None = None
    literal: str = ""


class _Payload(msgspec.Struct):
    text_ref: list[_Piece] = []


def _of_fragments(db: sqlite3.Connection, payload: str) -> str:
    """The text of a part that quotes files: those are stored once, in a table of their own."""
    texts: list[str] = []
    num_left = foreign.LARGEST_TEXT
    for piece in msgspec.json.decode(payload, type=_Payload).text_ref:
        text = piece.literal
        if piece.fragment is not None:
            row = db.execute("SELECT content FROM fragments WHERE id = ?", (piece.fragment,)).fetchone()
            text = str(row[0]) if row is not None else ""
        texts.append(text)
        num_left -= len(text)
        if num_left < 0:
            break  # `chat_of` refuses what is that long
    return "".join(texts)


class _Bounds:
    """What all threads together may have."""

    def __init__(self) -> None:
        self._rows = foreign.MOST_ROWS
        self._characters = LARGEST_LOG_TEXT

    def count(self, text: str) -> None:
        self._rows -= 1
        self._characters -= len(text)
        if self._rows < 0 or self._characters < 0:
            raise _too_many("messages")


def _too_many(what: str) -> ConversationError:
    return ConversationError(f"this log of llm's has more than {foreign.MOST_ROWS:,} {what}: split it first")
