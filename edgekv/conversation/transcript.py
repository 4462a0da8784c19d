"""The turns of one conversation as rows of the transcripts: loaded, saved, damaged ones told and replaced.

A damaged row is never written over. What was rebuilt of it goes to a fresh row that names the one it stands for,
when the person goes on. What the disk refused is owed: a turn without a row, or with one that is out of date. Knows
rows and blobs; not how a turn is rebuilt.
"""

from __future__ import annotations

import dataclasses
import shlex
import threading
from collections.abc import Callable
from typing import TYPE_CHECKING

from edgekv.conversation.journal import translated
from edgekv.conversation.turns import Turn, TurnTree, damaged_turn, decode_turn, encode_turn
from edgekv.errors import StoreError

if TYPE_CHECKING:
    from collections.abc import Iterable

    from edgekv_storage import ConversationRow, DamagedTurn, Transcripts, TurnRow

Rebuild = Callable[[TurnTree], "dict[int, str]"]
"""Puts turns in the place of damaged ones where it can; for the others it says why it cannot, by turn id."""


class TranscriptJournal:
    """A conversation's rows in the transcripts; its turn ids are the tree's own, mapped to rows here."""

    def __init__(
        self,
        transcripts: Transcripts,
        conversation: ConversationRow,
        *,
        read_only: bool = False,
        rebuild: Rebuild | None = None,
        owing: set[TranscriptJournal] | None = None,
    ) -> None:
        """`read_only`: damaged turns that cannot be rebuilt become placeholders instead of an error.

        `owing` holds this journal as long as it owes turns, so that whoever keeps a turn of another conversation,
        or closes the file, can try once more.
        """
        self._transcripts = transcripts
        self._read_only = read_only
        self._rebuild = rebuild
        self._conversation = conversation
        self._rows: dict[int, int] = {}
        self._not_kept: list[Turn] = []  # rebuilt, and in no row of their own yet
        self._owed: dict[int, Turn] = {}
        self._owed_head: int | None = None  # an owed turn without a row: the head once it has one
        self._owing = set() if owing is None else owing
        self._lock = threading.RLock()  # others settle too; whoever holds it waits for no other journal

    @property
    def conversation_id(self) -> int:
        """Of its row in the transcripts."""
        return self._conversation.id

    @property
    def num_owed(self) -> int:
        """Turns whose newest form is in memory only."""
        return len(self._owed)

    def load(self, tree: TurnTree) -> None:
        """Fill an empty tree. Raises StoreError naming the turn if one is lost, but for `read_only`."""
        with translated():
            good, bad = self._transcripts.readable_turns(self._conversation.id)
        ids = self._put(tree, good, bad)
        last = max(ids.values(), default=None) if self._read_only else None
        head = self._conversation.head
        tree.head = last if head is None else ids.get(head, last)
        num_lost = self._conversation.num_turns - len(good) - len(bad)
        if num_lost and not self._read_only:
            raise self._damaged(f"{num_lost} of its {self._conversation.num_turns} turns are lost")
        self._mend(tree)

    def _put(self, tree: TurnTree, good: Iterable[TurnRow], bad: Iterable[DamagedTurn]) -> dict[int, int]:
        """Every turn into the tree, what was rebuilt before in the damaged one's place; turn ids by row."""
        # What a damaged row says of its parent is not verified; it only orders what is shown, or what
        # the stored tokens then have to confirm.
        turns = {row.id: decode_turn(row.blob, turn_id=row.id, parent=row.parent) for row in good}
        turns |= {row.id: damaged_turn(row.id, row.parent, row.id) for row in bad}
        instead = _stand_ins(turns.values())
        ids: dict[int, int] = {}
        for row in sorted(turns):
            turn = turns[row]
            if turn.is_rebuilt and turn.replaces in ids:
                ids[row] = ids[turn.replaces]
                continue
            turn = instead.get(row, turn) if turn.state == "damaged" else turn
            ids[row] = ids[turn.id] = turn_id = tree.next_id()
            parent = None if turn.parent is None else ids.get(turn.parent)
            if turn.state != "damaged":
                self._rows[turn_id] = turn.id
            tree.put(dataclasses.replace(turn, id=turn_id, parent=parent))
        return ids

    def _mend(self, tree: TurnTree) -> None:
        damaged = [turn.id for turn in tree.turns() if turn.state == "damaged"]
        if not damaged:
            return
        reasons = {} if self._rebuild is None else self._rebuild(tree)
        self._not_kept = [turn for id_ in damaged if (turn := tree.get(id_)).is_rebuilt]
        left = next((tree.get(id_) for id_ in damaged if tree.get(id_).state == "damaged"), None)
        if left is not None and not self._read_only:
            why = f", and it cannot be rebuilt: {reasons[left.id]}" if left.id in reasons else ""
            position = len(tree.path(left.parent))
            raise self._damaged(f"turn {position} does not match what was written{why}")

    def _damaged(self, what: str) -> StoreError:
        name = self._conversation.name
        quoted = shlex.quote(name)
        return StoreError(
            f"conversation {name!r} is damaged: {what}; restore it from a backup, read the rest with "
            f"`edgekv export {quoted}`, or destroy it with `edgekv forget {quoted}`"
        )

    def save(self, path: list[Turn]) -> None:
        """Keep the last turn of `path`, make it the head; earlier ones not kept yet are added, all or none.

        Raises StoreError where the disk refuses; then `owe` them if they stay. What is owed already waits for
        `settle`: an old row that cannot be written must not stop a new turn.
        """
        with self._lock, translated():
            self._keep_rebuilt()
            if path[-1].id in self._rows:
                self._update(path[-1])
            else:
                self._append([turn for turn in path if turn.id not in self._rows])

    def owe(self, path: list[Turn]) -> None:
        """See Journal."""
        with self._lock:
            rebuilt = {turn.id for turn in self._not_kept}
            new = [turn for turn in path if turn.id not in self._rows and turn.id not in rebuilt]
            self._owed |= {turn.id: turn for turn in (*new, path[-1])}
            if path[-1].id not in self._rows:
                self._owed_head = path[-1].id
            self._owing.add(self)

    def settle_all(self) -> str | None:
        """See Journal. Of other conversations only they, and closing, tell what is still refused."""
        why = self.settle()
        for other in tuple(self._owing):
            if other is not self:
                other.settle()
        return why

    def settle(self) -> str | None:
        """Try again what this conversation owes; why some of it still is owed, None when all is kept.

        Each turn by itself: one that is refused for ever does not stop the others.
        """
        why = None
        with self._lock:
            for turn_id in sorted(self._owed):  # parents come before their children
                try:
                    with translated():
                        self._keep_rebuilt()
                        self._keep_owed(self._owed[turn_id])
                except StoreError as error:
                    why = str(error)
            if not self._owed:
                self._owing.discard(self)
        return why

    def drop_owed(self) -> None:
        """Its conversation is being forgotten: nothing is written for it any more, whoever is about to."""
        with self._lock:
            self._owed.clear()
            self._owing.discard(self)

    def _keep_owed(self, turn: Turn) -> None:
        if turn.id in self._rows:
            self._update(turn)
        elif turn.parent is None or turn.parent in self._rows:  # or the parent was refused, and said why
            self._append([turn], head=turn.id == self._owed_head)

    def save_head(self, turn_id: int | None) -> None:
        """Remember which branch is current. Raises StoreError where the disk refuses that, or the turn itself."""
        with self._lock, translated():
            self._keep_rebuilt()
            why = self.settle()
            if turn_id in self._owed and turn_id not in self._rows:
                raise StoreError(f"this branch is in memory only: {why}")
            self._transcripts.set_head(
                self._conversation.id, None if turn_id is None else self._rows.get(turn_id)
            )
            self._owed_head = None

    def _keep_rebuilt(self) -> None:
        """Rows for what was rebuilt; parents come before their children."""
        while self._not_kept:
            self._append(self._not_kept[:1], head=False)
            del self._not_kept[0]

    def _append(self, turns: list[Turn], *, head: bool = True) -> None:
        """Rows for turns of which each is the parent of the next; with `head` the last one is the head."""
        parent = None if turns[0].parent is None else self._rows[turns[0].parent]
        blobs = [encode_turn(turn) for turn in turns]
        rows = self._transcripts.append_turns(self._conversation.id, parent, blobs, head=head)
        self._rows.update(zip((turn.id for turn in turns), rows, strict=True))
        for turn in turns:
            self._owed.pop(turn.id, None)
        if head:
            self._owed_head = None

    def _update(self, turn: Turn) -> None:
        """Into the row it has."""
        self._transcripts.update_turn(self._rows[turn.id], encode_turn(turn))
        self._owed.pop(turn.id, None)


def _stand_ins(turns: Iterable[Turn]) -> dict[int, Turn]:
    """What was rebuilt, by the row it stands for; the newest where there are several."""
    return {turn.replaces: turn for turn in turns if turn.is_rebuilt and turn.replaces is not None}


def not_replaced(good: Iterable[TurnRow], bad: list[DamagedTurn]) -> list[DamagedTurn]:
    """Damaged rows for which no rebuilt turn stands."""
    if not bad:
        return []
    known = _stand_ins(decode_turn(row.blob, turn_id=row.id, parent=row.parent) for row in good)
    return [row for row in bad if row.id not in known]
