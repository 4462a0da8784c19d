"""A conversation as a file of its own: JSON lines that can be read back, or Markdown for people.

Knows turns and what they look like outside; not where such a file lies. What is written here is not encrypted.
"""

from __future__ import annotations

from array import array
from typing import TYPE_CHECKING, Any

import msgspec

from edgekv.conversation.journal import Meta
from edgekv.conversation.library import check_name
from edgekv.conversation.markdown import markdown_lines
from edgekv.conversation.turns import Turn, TurnTree, facts_of
from edgekv.errors import ConversationError
from edgekv.events import Exactness, FinishReason  # noqa: TC001  msgspec reads them at run time

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from edgekv.conversation.library import Library

FORMAT = 1


class _Head(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The first line."""

    edgekv_conversation: int
    name: str
    model: str
    fingerprint: str
    system: str | None = None
    head: int | None = None


class _Line(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Every other line: one turn. Token ids are what the model saw; without them it would be another chat."""

    id: int
    parent: int | None
    user: str
    answer: str
    state: str
    finish_reason: FinishReason | None = None
    exactness: Exactness | msgspec.UnsetType = msgspec.UNSET
    answer_ended: bool = False
    is_whole: bool = False
    prompt_ids: list[int] = []
    answer_ids: list[int] = []
    sampling: dict[str, float | int | None] = {}


def export_lines(library: Library, name: str) -> Iterator[str]:
    """JSON lines, branches included; damaged turns are marked as such."""
    found = library.find(name)
    if found is None:
        library.require(name)
    assert found is not None, "required a line above"
    tree = _tree(library, name)
    head = _Head(
        edgekv_conversation=FORMAT,
        name=name,
        model=found.meta.model,
        fingerprint=found.meta.fingerprint.hex(),
        system=found.meta.system,
        head=tree.head,
    )
    yield msgspec.json.encode(head).decode()
    for turn in tree.turns():
        values: dict[str, Any] = {field: getattr(turn, field) for field in _Line.__struct_fields__}
        values |= {"prompt_ids": list(turn.prompt_ids), "answer_ids": list(turn.answer_ids)}
        values["exactness"] = turn.exactness or msgspec.UNSET
        yield msgspec.json.encode(_Line(**values)).decode()


def export_markdown(library: Library, name: str) -> Iterator[str]:
    """The current branch, for reading."""
    library.require(name)
    tree = _tree(library, name)
    yield from markdown_lines(name, tree.path(tree.head))


def import_lines(library: Library, lines: Iterable[str], name: str | None = None) -> str:
    """A new conversation from JSON lines, all of it or nothing; returns its name.

    Raises ConversationError naming the line that makes no sense, StoreError where the disk refuses.
    """
    numbered = [(number, line) for number, line in enumerate(lines, 1) if line.strip()]
    if not numbered:
        raise ConversationError(
            "there is nothing in this file: it begins with a line that names a conversation"
        )
    head = _decode(*numbered[0], _Head)
    if head.edgekv_conversation != FORMAT:
        raise ConversationError(
            f"this file has format {head.edgekv_conversation}, this edgekv reads {FORMAT}: update it"
        )
    name = head.name if name is None else name
    check_name(name)
    tree = TurnTree()
    ids: dict[int, int] = {}
    for number, text in numbered[1:]:
        tree.put(_turn(number, _decode(number, text, _Line), ids, tree.next_id()))
    if head.head is not None and head.head not in ids:
        raise ConversationError(
            f"line 1: turn {head.head}, where the conversation goes on, is not in the file"
        )
    meta = Meta(fingerprint=_fingerprint(head.fingerprint), model=head.model, system=head.system)
    library.create(name, meta)
    try:
        journal = library.journal(name)
        for turn in tree.turns():
            journal.save([turn])
        journal.save_head(None if head.head is None else ids[head.head])
    except BaseException:
        library.forget(name)
        raise
    return name


def _tree(library: Library, name: str) -> TurnTree:
    tree = TurnTree()
    library.journal(name, read_only=True).load(tree)
    return tree


def _decode(number: int, text: str, kind: type[Any]) -> Any:
    try:
        return msgspec.json.decode(text.encode("utf-8", "surrogatepass"), type=kind)
    except (msgspec.MsgspecError, UnicodeError, RecursionError) as error:
        raise ConversationError(f"line {number} is no part of a conversation: {error}") from error


def _turn(number: int, line: _Line, ids: dict[int, int], turn_id: int) -> Turn:
    if line.id in ids or (line.parent is not None and line.parent not in ids):
        raise ConversationError(f"line {number}: a turn comes once, and behind its parent")
    if line.state not in ("pending", "complete", "stopped"):
        raise ConversationError(f"line {number}: a {line.state} turn cannot be read back; take the line out")
    ids[line.id] = turn_id
    try:
        prompt_ids, answer_ids = array("i", line.prompt_ids), array("i", line.answer_ids)
        line.user.encode()
        line.answer.encode()
    except (OverflowError, UnicodeError) as error:
        raise ConversationError(f"line {number}: {error}") from error
    if any(token < 0 for token in (*prompt_ids, *answer_ids)):
        raise ConversationError(f"line {number}: a token id below 0")
    exactness = None if line.exactness is msgspec.UNSET else line.exactness
    finish_reason, exactness = facts_of(line.state, line.sampling, line.finish_reason, exactness)
    return Turn(
        id=turn_id,
        parent=None if line.parent is None else ids[line.parent],
        user=line.user,
        answer=line.answer,
        state=line.state,  # type: ignore[arg-type]  # checked above
        finish_reason=finish_reason,
        exactness=exactness,
        answer_ended=line.answer_ended,
        is_whole=line.is_whole,
        prompt_ids=prompt_ids,
        answer_ids=answer_ids,
        sampling=line.sampling,
    )


def _fingerprint(text: str) -> bytes:
    try:
        return bytes.fromhex(text)
    except ValueError as error:
        raise ConversationError("line 1: the model's fingerprint is no hexadecimal number") from error
