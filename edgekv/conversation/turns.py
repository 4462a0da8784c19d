"""The turn tree of one conversation: exchanges, branches and the token ids along a path.

A turn is one user message with its answer. Knows text and token ids; nothing of models, threads or disks.
The stored token ids are the truth: what the model saw is never rendered or tokenized a second time.
"""

from __future__ import annotations

import dataclasses
from array import array
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal

import msgspec

from edgekv.errors import ConversationError, StoreError
from edgekv.events import Exactness, FinishReason  # noqa: TC001  msgspec reads them at run time

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

TurnState = Literal["pending", "complete", "stopped", "damaged"]
TURN_FORMAT = 1


def _no_ids() -> array[int]:
    return array("i")


@dataclass(frozen=True, slots=True)
class Turn:
    """One user message and its answer.

    `state`: pending (no answer: it is being generated, or the process died), complete, stopped (the kept part
    of a cancelled answer), or damaged (kept, and not readable any more). `prompt_ids` are the tokens this turn
    added before its answer; with `is_whole` they are the whole context instead, because the template rewrote
    what came before. `answer_ids` are the generated tokens, the end token included if it was generated.
    `sampling` is what the answer is drawn with: empty where it was not made here. How such an answer came to be is
    not known: `finish_reason` and `exactness` are then None, as they are before there is an answer.
    `replaces` is the damaged transcript row that a rebuilt turn stands for; None for all others.
    """

    id: int
    parent: int | None
    user: str
    answer: str = ""
    state: TurnState = "pending"
    finish_reason: FinishReason | None = None
    exactness: Exactness | None = None
    answer_ended: bool = False
    is_whole: bool = False
    prompt_ids: array[int] = field(default_factory=_no_ids, repr=False)
    answer_ids: array[int] = field(default_factory=_no_ids, repr=False)
    sampling: dict[str, float | int | None] = field(default_factory=dict, repr=False)
    replaces: int | None = field(default=None, repr=False)

    @property
    def is_rebuilt(self) -> bool:
        """Put together again from stored tokens, because its row was damaged."""
        return self.replaces is not None and self.state != "damaged"

    @property
    def is_imported(self) -> bool:
        """Its answer was made elsewhere."""
        return self.state == "complete" and not self.sampling and not self.is_rebuilt


@dataclass(frozen=True, slots=True)
class Branch:
    """One leaf of the tree: `id` is its last turn's id."""

    id: int
    num_turns: int
    last_user_text: str
    is_current: bool


class TurnTree:
    """All turns of a conversation and the head: the turn after which the next one goes."""

    def __init__(self) -> None:
        self._turns: dict[int, Turn] = {}
        self._next_id = 0
        self.head: int | None = None

    def __len__(self) -> int:
        return len(self._turns)

    def next_id(self) -> int:
        """An id that no turn has or had."""
        return self._next_id

    def put(self, turn: Turn) -> None:
        """Add a turn, or replace the one with its id."""
        assert turn.parent is None or turn.parent in self._turns, "a turn comes after its parent"
        self._turns[turn.id] = turn
        self._next_id = max(self._next_id, turn.id + 1)

    def take_back(self, turns: Iterable[Turn]) -> None:
        """Undo `put` of turns that nothing stands behind."""
        for turn in turns:
            del self._turns[turn.id]

    def get(self, turn_id: int) -> Turn:
        """The turn with this id; ConversationError if there is none."""
        if turn_id not in self._turns:
            raise ConversationError(f"no turn has the id {turn_id}; see branches() and history()")
        return self._turns[turn_id]

    def turns(self) -> list[Turn]:
        """All turns of all branches, each behind its parent."""
        return [self._turns[turn_id] for turn_id in sorted(self._turns)]

    def path(self, turn_id: int | None) -> list[Turn]:
        """The turns from the first to `turn_id`; empty for None."""
        path: list[Turn] = []
        while turn_id is not None:
            turn = self._turns[turn_id]
            path.append(turn)
            turn_id = turn.parent
        path.reverse()
        return path

    def context_ids(self, turn_id: int | None) -> array[int]:
        """All token ids up to and with the answer of `turn_id`."""
        ids = array("i")
        for turn in self.path(turn_id):
            ids = array("i", turn.prompt_ids) if turn.is_whole else ids + turn.prompt_ids
            ids.extend(turn.answer_ids)
        return ids

    def at(self, position: int) -> Turn:
        """The turn at `position` (from 0, negative from the end) of the current branch."""
        path = self.path(self.head)
        if not -len(path) <= position < len(path):
            raise ConversationError(f"no turn {position}: this branch has {len(path)} turns, counted from 0")
        return path[position]

    def branches(self) -> list[Branch]:
        """Every leaf of the tree, oldest first."""
        depths: dict[int | None, int] = {None: 0}
        for turn in self.turns():
            depths[turn.id] = depths[turn.parent] + 1
        parents = {turn.parent for turn in self._turns.values()}
        leaves = [turn for turn in self._turns.values() if turn.id not in parents]
        return [
            Branch(leaf.id, depths[leaf.id], leaf.user, is_current=leaf.id == self.head) for leaf in leaves
        ]


class _Record(msgspec.Struct, frozen=True, kw_only=True):
    """A turn as it is stored: MessagePack, ids as little-endian int32."""

    format: int
    user: str
    answer: str
    state: TurnState
    finish_reason: FinishReason | None
    exactness: Exactness
    answer_ended: bool
    is_whole: bool
    prompt_ids: bytes
    answer_ids: bytes
    sampling: dict[str, float | int | None]
    replaces: int | None = None


def encode_turn(turn: Turn) -> bytes:
    """The bytes a transcript row holds; parent and order are the row's own."""
    record = _Record(
        format=TURN_FORMAT,
        user=turn.user,
        answer=turn.answer,
        state=turn.state,
        finish_reason=turn.finish_reason,
        exactness=turn.exactness or "exact",  # every version reads this; without `sampling` it means nothing
        answer_ended=turn.answer_ended,
        is_whole=turn.is_whole,
        prompt_ids=_pack(turn.prompt_ids),
        answer_ids=_pack(turn.answer_ids),
        sampling=turn.sampling,
        replaces=turn.replaces,
    )
    return msgspec.msgpack.encode(record)


def decode_turn(blob: bytes, *, turn_id: int, parent: int | None) -> Turn:
    """The inverse of `encode_turn`; StoreError if a newer edgekv wrote it or it is no turn at all."""
    try:
        record = msgspec.msgpack.decode(blob, type=_Record)
    except msgspec.MsgspecError as error:
        raise StoreError(
            f"turn {turn_id} cannot be read: {error}; a newer edgekv may have written it"
        ) from error
    if record.format != TURN_FORMAT:
        raise StoreError(
            f"turn {turn_id} has format {record.format}, this edgekv reads {TURN_FORMAT}; upgrade it"
        )
    finish_reason, exactness = facts_of(record.state, record.sampling, record.finish_reason, record.exactness)
    return Turn(
        id=turn_id,
        parent=parent,
        user=record.user,
        answer=record.answer,
        state=record.state,
        finish_reason=finish_reason,
        exactness=exactness,
        answer_ended=record.answer_ended,
        is_whole=record.is_whole,
        prompt_ids=_unpack(record.prompt_ids),
        answer_ids=_unpack(record.answer_ids),
        sampling=record.sampling,
        replaces=record.replaces,
    )


def facts_of(
    state: str,
    sampling: Mapping[str, object],
    finish_reason: FinishReason | None,
    exactness: Exactness | None,
) -> tuple[FinishReason | None, Exactness | None]:
    """Why an answer ended and how exact it is, as stored; None for what was not answered here.

    There "exact" only fills its place, and edgekv once wrote that imported answers were ended by the model.
    """
    is_answered_here = bool(sampling) and state in ("complete", "stopped")
    return (finish_reason, exactness) if is_answered_here else (None, None)


def damaged_turn(turn_id: int, parent: int | None, row: int) -> Turn:
    """Stands for a turn whose `row` in the transcripts is damaged, until it is rebuilt."""
    text = "[this turn cannot be read: its record is damaged]"
    return Turn(turn_id, parent, user=text, state="damaged", replaces=row)


def answered(
    turn: Turn,
    *,
    text: str,
    token_ids: array[int],
    finish_reason: FinishReason,
    exactness: Exactness,
    ended: bool,
) -> Turn:
    """`turn` with its answer."""
    return dataclasses.replace(
        turn,
        answer=text,
        answer_ids=token_ids,
        finish_reason=finish_reason,
        exactness=exactness,
        answer_ended=ended,
        state="stopped" if finish_reason == "cancelled" else "complete",
    )


def _pack(ids: array[int]) -> bytes:
    assert ids.itemsize == 4, "token ids are stored as 32-bit integers"
    return ids.tobytes()  # x86-64 and aarch64 Linux are little-endian


def _unpack(packed: bytes) -> array[int]:
    ids = array("i")
    ids.frombytes(packed)
    return ids
