"""Conversations out of other programs: ChatGPT's data export and the logs of `llm`. Texts only.

Knows what those files look like, and that they may be hostile: sizes, nesting and rows are bounded, unknown fields
are passed over, a database's views and triggers are never followed. Does not know where conversations are kept.
"""

from __future__ import annotations

import contextlib
import struct
import zlib
from dataclasses import dataclass
from typing import TYPE_CHECKING

import msgspec

from edgekv.conversation.dialogue import JOINT
from edgekv.errors import ConversationError

if TYPE_CHECKING:
    import sqlite3
    from collections.abc import Iterable, Iterator
    from pathlib import Path

LARGEST_JSON_BYTES = 512 << 20
LARGEST_TEXT = 4 << 20
MOST_EXCHANGES = 20_000
MOST_ROWS = 10 * MOST_EXCHANGES
MOST_SQLITE_STEPS = 50_000_000
SQLITE_MAGIC = b"SQLite format 3\0"
ZIP_MAGIC = b"PK\x03\x04"


@dataclass(frozen=True, slots=True)
class ForeignChat:
    """One conversation of another program: its title and (message, answer) pairs, oldest first.

    `refusal`: why it cannot be imported, where it is larger than edgekv takes; `said` is then empty.
    """

    title: str
    said: tuple[tuple[str, str], ...]
    system: str | None = None
    refusal: str | None = None


def read_foreign(path: Path) -> list[ForeignChat]:
    """All conversations in a file: ChatGPT's conversations.json or the .zip around it, or llm's logs.db.

    Raises:
        ConversationError: it cannot be read, or is none of these.
    """
    try:
        with path.open("rb") as file:
            start = file.read(16)
        if start == SQLITE_MAGIC:
            found = _from_llm(path)
        elif start.startswith(ZIP_MAGIC):
            found = _from_chatgpt(_unzipped(path))
        else:
            found = _from_chatgpt(_bounded(path))
    except OSError as error:
        raise ConversationError(f"cannot read {path}: {error.strerror or error}") from error
    if not found:
        raise ConversationError(f"{path} has no conversation with text in it")
    return found


class _Author(msgspec.Struct):
    role: str


class _Content(msgspec.Struct):
    content_type: str = ""
    parts: list[object] = []


class _Message(msgspec.Struct):
    author: _Author
    content: _Content


class _Node(msgspec.Struct):
    message: _Message | None = None
    parent: str | None = None


class _Exported(msgspec.Struct):
    """One conversation of ChatGPT's export: a tree of messages, and which leaf is current."""

    mapping: dict[str, _Node]
    title: str | None = None
    current_node: str | None = None


def _bounded(path: Path) -> bytes:
    if path.stat().st_size > LARGEST_JSON_BYTES:
        raise ConversationError(f"{path} is larger than {LARGEST_JSON_BYTES >> 20} MiB: split it first")
    return path.read_bytes()


def _unzipped(path: Path) -> bytes:
    import lzma  # noqa: PLC0415  importing edgekv shall not pay for what few people use
    import zipfile  # noqa: PLC0415

    damage = (zipfile.BadZipFile, zlib.error, lzma.LZMAError, EOFError, struct.error, ValueError)
    try:
        with zipfile.ZipFile(path) as archive, archive.open("conversations.json") as member:
            data = member.read(LARGEST_JSON_BYTES + 1)
    except (*damage, KeyError, NotImplementedError, RuntimeError) as error:
        raise ConversationError(f"{path} is no archive with a conversations.json in it: {error}") from error
    if len(data) > LARGEST_JSON_BYTES:
        raise ConversationError(f"conversations.json in {path} is larger than {LARGEST_JSON_BYTES >> 20} MiB")
    return data


def _from_chatgpt(data: bytes) -> list[ForeignChat]:
    try:
        exported = msgspec.json.decode(data, type=list[_Exported])
    except (msgspec.MsgspecError, UnicodeError, RecursionError) as error:
        raise ConversationError(f"this is no export of ChatGPT's: {error}") from error
    chats = (_chat(one.title or "untitled", _messages(one)) for one in exported)
    return [chat for chat in chats if chat.said or chat.refusal]


def _messages(exported: _Exported) -> list[tuple[str, str]]:
    """The current branch as (role, text), oldest first."""
    found: list[tuple[str, str]] = []
    at, seen = exported.current_node, set[str]()
    while at is not None and at in exported.mapping and at not in seen:
        seen.add(at)
        node = exported.mapping[at]
        if node.message is not None:
            texts = [part for part in node.message.content.parts if isinstance(part, str)]
            found.append((node.message.author.role, JOINT.join(filter(None, texts))))
        at = node.parent
    return found[::-1]


def _chat(title: str, messages: Iterable[tuple[str, str]]) -> ForeignChat:
    """Exchanges out of messages: tools' and empty ones are left out, neighbours of one role are joined."""
    system: list[str] = []
    said: list[tuple[list[str], list[str]]] = []
    for role, text in messages:
        if not text.strip():
            continue
        if role == "system":
            system.append(text)
        elif role == "user":
            if not said or said[-1][1]:
                said.append(([], []))
            said[-1][0].append(text)
        elif role == "assistant" and said:
            said[-1][1].append(text)
    if len(said) > MOST_EXCHANGES:
        return ForeignChat(title, (), refusal=f"it has more than {MOST_EXCHANGES:,} exchanges")
    texts = [_text(pieces) for pieces in (system, *(piece for pair in said for piece in pair))]
    if max(map(len, texts)) > LARGEST_TEXT:
        return ForeignChat(title, (), refusal=f"a message has more than {LARGEST_TEXT:,} characters")
    return ForeignChat(title, tuple(zip(texts[1::2], texts[2::2], strict=True)), texts[0] or None)


def _text(pieces: list[str]) -> str:
    return JOINT.join(pieces).encode("utf-8", "replace").decode("utf-8")  # JSON can have half characters


def _from_llm(path: Path) -> list[ForeignChat]:
    import sqlite3  # noqa: PLC0415  as above

    try:
        with contextlib.closing(_opened(path)) as db:
            return list(_llm_chats(db))
    except sqlite3.Error as error:
        raise ConversationError(f"{path} is no log of llm's that can be read: {error}") from error


def _opened(path: Path) -> sqlite3.Connection:
    """Read-only and mistrusted: nothing in the schema runs, and nothing runs for long."""
    import sqlite3  # noqa: PLC0415  as above
    from urllib.parse import quote  # noqa: PLC0415  as above

    db = sqlite3.connect(f"file:{quote(str(path.absolute()))}?mode=ro", uri=True)
    for pragma in ("trusted_schema = OFF", "query_only = ON", "temp_store = MEMORY", "cell_size_check = ON"):
        db.execute(f"PRAGMA {pragma}")
    db.setlimit(sqlite3.SQLITE_LIMIT_LENGTH, LARGEST_TEXT)
    steps_left = [MOST_SQLITE_STEPS // 10_000]

    def is_too_long() -> bool:
        steps_left[0] -= 1
        return steps_left[0] < 0

    db.set_progress_handler(is_too_long, 10_000)
    return db


def _llm_chats(db: sqlite3.Connection) -> Iterator[ForeignChat]:
    kinds = dict(
        db.execute("SELECT name, type FROM sqlite_master WHERE name IN ('responses', 'conversations')")
    )
    if kinds != {"responses": "table", "conversations": "table"}:
        raise ConversationError(
            "this database is no log of llm's: it has no tables responses and conversations"
        )
    rows = db.execute(
        "SELECT c.name, r.conversation_id, r.system, r.prompt, r.response FROM responses r "
        "JOIN conversations c ON c.id = r.conversation_id ORDER BY r.conversation_id, r.id LIMIT ?",
        (MOST_ROWS + 1,),
    )
    messages: dict[object, tuple[str, list[tuple[str, str]]]] = {}
    for number, (name, conversation, system, prompt, response) in enumerate(rows):
        if number == MOST_ROWS:
            raise ConversationError(f"this log of llm's has more than {MOST_ROWS:,} answers: split it first")
        _, said = messages.setdefault(conversation, (str(name or "untitled"), []))
        if isinstance(system, str) and system and not said:
            said.append(("system", system))
        said += [("user", str(prompt or "")), ("assistant", str(response or ""))]
    chats = (_chat(name, said) for name, said in messages.values())
    yield from (chat for chat in chats if chat.said or chat.refusal)
