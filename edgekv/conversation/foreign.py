"""Conversations out of other programs: ChatGPT's data export, and the logs of `llm` (llmlog.py). Texts only.

Knows what an export looks like, and that it may be hostile: sizes and nesting are bounded, unknown fields are
passed over, and what is no text is counted. Does not know where conversations are kept.
"""

from __future__ import annotations

import struct
import zlib
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

import msgspec

from edgekv.conversation.dialogue import JOINT
from edgekv.errors import ConversationError

if TYPE_CHECKING:
    from collections.abc import Iterable
    from pathlib import Path

LARGEST_JSON_BYTES = 512 << 20
LARGEST_TEXT = 4 << 20
MOST_EXCHANGES = 20_000
MOST_ROWS = 10 * MOST_EXCHANGES
MOST_SQLITE_STEPS = 50_000_000
NO_TEXT = "[no text: an image or a file that was not imported]"
"""A message of nothing else: without words of its own its answer would join the one before."""
SQLITE_MAGIC = b"SQLite format 3\0"
ZIP_MAGIC = b"PK\x03\x04"


@dataclass(frozen=True, slots=True)
class ForeignChat:
    """One conversation of another program: its title and (message, answer) pairs, oldest first.

    `refusal`: why it cannot be imported, where it is larger than edgekv takes; `said` is then empty.
    `num_left_out`: how many of its parts are no text, such as images, and were left out.
    """

    title: str
    said: tuple[tuple[str, str], ...]
    system: str | None = None
    refusal: str | None = None
    num_left_out: int = 0

    @property
    def notice(self) -> str | None:
        """What to tell of what was left out; None where nothing was."""
        if not self.num_left_out:
            return None
        parts = f"{self.num_left_out:,} part" + ("s" if self.num_left_out > 1 else "")
        return f"imported without {parts} of other kinds than text: images, files, tools, reasoning"


def read_foreign(path: Path) -> list[ForeignChat]:
    """All conversations in a file: ChatGPT's conversations.json or the .zip around it, or llm's logs.db.

    Raises:
        ConversationError: it cannot be read, or is none of these.
    """
    try:
        with path.open("rb") as file:
            start = file.read(16)
        if start == SQLITE_MAGIC:
            from edgekv.conversation.llmlog import from_llm  # noqa: PLC0415  importing edgekv shall not pay for it

            found = from_llm(path)
        elif start.startswith(ZIP_MAGIC):
            found = _from_chatgpt(_unzipped(path))
        else:
            found = _from_chatgpt(_bounded(path))
    except OSError as error:
        raise ConversationError(f"cannot read {path}: {error.strerror or error}") from error
    if not found:
        raise ConversationError(f"{path} has no conversation with text in it")
    return found


def is_foreign(path: Path) -> bool:
    """Whether a file looks like an export of another program: an archive, a database or a JSON list."""
    try:
        with path.open("rb") as file:
            start = file.read(16)
    except OSError:
        return False  # whoever reads it tells
    return start == SQLITE_MAGIC or start.startswith(ZIP_MAGIC) or start.lstrip().startswith(b"[")


class Said(NamedTuple):
    """One message, and how many parts of it are no text."""

    role: str
    text: str
    num_left_out: int = 0


class _Author(msgspec.Struct):
    role: str


class _Content(msgspec.Struct):
    content_type: str = ""
    parts: list[object] | None = None
    text: object = None
    language: object = None


class _Message(msgspec.Struct):
    author: _Author
    content: _Content
    metadata: dict[str, object] | None = None


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
    chats = (chat_of(one.title or "untitled", _messages(one)) for one in exported)
    return [chat for chat in chats if chat.said or chat.refusal]


def _messages(exported: _Exported) -> list[Said]:
    """The current branch, oldest first."""
    found: list[Said] = []
    at, seen = exported.current_node, set[str]()
    while at is not None and at in exported.mapping and at not in seen:
        seen.add(at)
        node = exported.mapping[at]
        if node.message is not None:
            found.append(_said(node.message))
        at = node.parent
    return found[::-1]


def _said(message: _Message) -> Said:
    """A message's text; code comes as a fenced block, as the chat shows it."""
    role, content = message.author.role, message.content
    if content.content_type == "code" and isinstance(content.text, str) and role == "assistant":
        return Said(role, _fenced(content.text, content.language), 0)
    parts = content.parts or []
    texts = [text for text in map(_part_text, parts) if text is not None]
    attached = (message.metadata or {}).get("attachments")  # files; an image is there and among the parts
    num_left_out = max(len(parts) - len(texts), len(attached) if isinstance(attached, list) else 0)
    if content.parts is None and content.content_type not in ("", "text", "model_editable_context"):
        num_left_out += 1  # reasoning, a tool's output, a page that was read
    return Said(role, JOINT.join(filter(None, texts)), num_left_out)


def _part_text(part: object) -> str | None:
    if isinstance(part, dict) and part.get("content_type") == "audio_transcription":
        part = part.get("text")  # what was said in voice mode; the sound itself is another part
    return part if isinstance(part, str) else None


def _fenced(code: str, language: object) -> str:
    fence = "```"
    while fence in code:
        fence += "`"
    name = language if isinstance(language, str) and language.isalnum() and language != "unknown" else ""
    return f"{fence}{name}\n{code}\n{fence}" if code.strip() else ""


def chat_of(title: str, messages: Iterable[Said]) -> ForeignChat:
    """Exchanges out of messages: tools' and empty ones are left out, neighbours of one role are joined."""
    system: list[str] = []
    said: list[tuple[list[str], list[str]]] = []
    num_left_out = 0
    for role, text, num_others in messages:
        num_left_out += num_others
        if role not in ("system", "user", "assistant"):
            num_left_out += bool(text.strip())  # a tool's output
            continue
        if role == "user" and num_others and not text.strip():
            text = NO_TEXT  # noqa: PLW2901
        if not text.strip():
            continue
        if role == "system":
            system.append(text)
        elif role == "user":
            if not said or said[-1][1]:
                said.append(([], []))
            said[-1][0].append(text)
        elif said:
            said[-1][1].append(text)
    if len(said) > MOST_EXCHANGES:
        return ForeignChat(title, (), refusal=f"it has more than {MOST_EXCHANGES:,} exchanges")
    texts = [_text(pieces) for pieces in (system, *(piece for pair in said for piece in pair))]
    if max(map(len, texts)) > LARGEST_TEXT:
        return ForeignChat(title, (), refusal=f"a message has more than {LARGEST_TEXT:,} characters")
    pairs = tuple(zip(texts[1::2], texts[2::2], strict=True))
    return ForeignChat(title, pairs, texts[0] or None, num_left_out=num_left_out)


def _text(pieces: list[str]) -> str:
    return JOINT.join(pieces).encode("utf-8", "replace").decode("utf-8")  # JSON can have half characters
