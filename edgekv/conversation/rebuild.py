"""Turns whose rows are damaged, put together again from the token ids that are stored with their KV.

The stored ids of the whole conversation are known, and so are those of the intact turns: what lies between is
the damaged one. Its ids are cut into message and answer where the template's own words stand, and the cut is
believed only if that message, rendered again, gives the very same ids. Knows turns, ids and the template's
face; no rows, no files.
"""

from __future__ import annotations

import dataclasses
from array import array
from typing import TYPE_CHECKING

import numpy as np

from edgekv.conversation.render import render_turn
from edgekv.errors import StoreError, TemplateError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from numpy.typing import NDArray

    from edgekv.conversation.render import FrontLike
    from edgekv.conversation.turns import Turn, TurnTree

    Ids = NDArray[np.int32]

MAX_MISSING = 15
"""Tokens behind the last full leaf are not stored."""
_SURE = 8  # tokens of a later turn that have to agree before they count as its beginning
_MARK = 4  # tokens of markup that are looked for where the words before it have changed (a date, say)
_TRIES = 8  # places where an answer may begin that are tried
_PROBES = ("query", "Zebra")  # they begin and end differently: what is common to both is the template's


class Rebuilder:
    """Of one conversation. `paths` gives the stored ids of its sequence; it is asked once, when needed."""

    def __init__(self, front: FrontLike, system: str | None, paths: Callable[[], list[Ids]]) -> None:
        self._front = front
        self._system = system
        self._paths = paths

    def rebuild(self, tree: TurnTree, tell: Callable[[str], None]) -> dict[int, str]:
        """Replace damaged turns of `tree` where it can; `tell` hears of each. Why not, by id, for the others."""
        failed: dict[int, str] = {}
        try:
            paths = self._paths()
        except StoreError as error:
            return {turn.id: str(error) for turn in tree.turns() if turn.state == "damaged"}
        for turn in tree.turns():
            if turn.state != "damaged":
                continue
            why = "no KV of this conversation is stored any more"
            try:
                found = self._find(tree, turn, paths) if paths else None
                why = "too few of its tokens are stored" if paths else why
            except TemplateError as error:
                found, why = None, str(error)
            if found is None:
                failed[turn.id] = why
                continue
            tree.put(found[0])
            missing = "" if found[1] else f"; the last up to {MAX_MISSING} tokens may be missing"
            position = len(tree.path(turn.parent))
            tell(f"turn {position} was damaged and rebuilt from the stored tokens{missing}")
        return failed

    def _find(self, tree: TurnTree, turn: Turn, paths: list[Ids]) -> tuple[Turn, bool] | None:
        """The turn again, and whether none of its tokens can be missing."""
        before = tree.path(turn.parent)
        if any(earlier.state == "damaged" for earlier in before):
            return None
        cutter = _Cutter(self._front, before, self._system)
        known = _as_ids([] if cutter.is_whole else tree.context_ids(turn.parent))
        beyond = [
            path[len(known) :] for path in paths if _starts_with(path, known) and len(path) > len(known)
        ]
        for tail in _tails(tree, turn):
            for ids in beyond:
                end = _locate(ids, tail)
                cut = None if end is None else cutter.cut(ids[:end])
                if cut is not None and not self._ends_inside(cut[1]):
                    return self._made(turn, cut, cutter.is_whole, is_exact=True)
        others = _explained(tree, turn, before, len(known))
        for ids in beyond:
            if any(_agree(ids, other) for other in others):
                continue
            cut = cutter.cut(ids)
            if cut is not None:
                cut = (cut[0], self._to_end(cut[1]), cut[2])
                made = self._made(turn, cut, cutter.is_whole, is_exact=False)
                if made[1] or not self._is_followed(tree, [*before, made[0]]):
                    return made
        return None

    def _is_followed(self, tree: TurnTree, path: list[Turn]) -> bool:
        """Whether tokens of later turns come right behind the last one's, so that its end has to be known."""
        follows = any(not child.is_whole for child in _children(tree, path[-1].id))
        return follows and not render_turn(self._front, path, self._system, _PROBES[0])[1]

    def _made(
        self, turn: Turn, cut: tuple[Ids, Ids, str], is_whole: bool, *, is_exact: bool
    ) -> tuple[Turn, bool]:
        from edgekv.models.tokenizer import Detokenizer  # noqa: PLC0415  only where something is damaged

        prompt, answer, user = cut
        detokenizer = Detokenizer(self._front.tokenizer)
        text = "".join(detokenizer.push(int(token)) for token in answer) + detokenizer.flush()
        ended = self._has_ended(answer)
        is_exact = is_exact or ended
        made = dataclasses.replace(
            turn,
            user=user,
            answer=text,
            state="complete" if is_exact else "stopped" if len(answer) else "pending",
            answer_ended=ended,
            is_whole=is_whole,
            prompt_ids=array("i", prompt.tolist()),
            answer_ids=array("i", answer.tolist()),
        )
        return made, is_exact

    def _to_end(self, answer: Ids) -> Ids:
        """Up to the first end token: what is stored behind it belongs to later turns."""
        ends = np.isin(answer, list(self._front.tokenizer.end_ids)).nonzero()[0]
        return answer[: ends[0] + 1] if len(ends) else answer

    def _has_ended(self, answer: Ids) -> bool:
        return len(answer) > 0 and int(answer[-1]) in self._front.tokenizer.end_ids

    def _ends_inside(self, answer: Ids) -> bool:
        """Whether more than one turn lies in it: the damaged row named a wrong parent."""
        return len(self._to_end(answer)) < len(answer)


class _Cutter:
    """Finds where the message ends and the answer begins in the ids of a turn that follows `before`."""

    def __init__(self, front: FrontLike, before: list[Turn], system: str | None) -> None:
        self._front = front
        self._before = before
        self._system = system
        one, self.is_whole = self._render(_PROBES[0])
        other, _ = self._render(_PROBES[1])
        self._head = one[: _num_common(one, other)]
        self._tail = one[len(one) - _num_common(one[::-1], other[::-1]) :]

    def _render(self, text: str) -> tuple[Ids, bool]:
        ids, is_whole = render_turn(self._front, self._before, self._system, text)
        return _as_ids(ids), is_whole

    def cut(self, ids: Ids) -> tuple[Ids, Ids, str] | None:
        """(ids of the prompt, ids of the answer, the message); None where the template's words are not found."""
        if not len(self._head) or not len(self._tail):
            return None
        # A message may begin or end with letters that merge with the markup beside it: one token less is asked.
        mark, first = self._head[-_MARK:-1], self._head[-1:]
        end = self._tail if self._is_markup(self._tail[0]) else self._tail[1:]
        last = self._tail[: len(self._tail) - len(end)]
        usual = len(self._head) - 1 - len(mark)
        at = usual if _starts_with(ids, self._head[:-1]) else self._changed_head(ids, mark)
        if at is None:
            return None
        start = at + len(mark)
        for count, stop in enumerate(_occurrences(ids[start:], end)):
            if count == _TRIES:
                break
            raw = self._spell(ids[start : start + stop])
            text = raw.removeprefix(self._spell(first)).removesuffix(self._spell(last))
            prompt = ids[: start + stop + len(end)]
            for user in dict.fromkeys((text, text.removeprefix(" "))):
                again = self._render(user)[0][usual:]
                if len(again) and np.array_equal(again, prompt[at:]):
                    return prompt, ids[len(prompt) :], user
        return None

    def _changed_head(self, ids: Ids, mark: Ids) -> int | None:
        """Where a first message begins though the words before it are others by now: a date, say."""
        return None if self._before else next(_occurrences(ids, mark), None)

    def _spell(self, ids: Ids) -> str:
        return self._front.tokenizer.decode(ids.tolist(), special=True)

    def _is_markup(self, token: np.int32) -> bool:
        """A control token spells nothing, unless it is asked to."""
        return not self._front.tokenizer.piece(int(token))


def _tails(tree: TurnTree, turn: Turn) -> Iterator[Ids]:
    """What is known to follow on `turn`: the ids of intact turns, along each branch as far as they go."""
    open_ends = [(child, _as_ids([])) for child in _children(tree, turn.id)]
    while open_ends:
        child, before = open_ends.pop()
        if child.state == "damaged" or child.is_whole:
            if len(before):
                yield before
            continue
        ids = np.concatenate([before, _turn_ids(child)])
        following = _children(tree, child.id)
        open_ends += [(next_, ids) for next_ in following]
        if not following:
            yield ids


def _explained(tree: TurnTree, turn: Turn, before: list[Turn], start: int) -> list[Ids]:
    """Ids from `start` on that belong to other turns, which are intact: its siblings, and whole contexts."""
    known = [_turn_ids(other) for other in _children(tree, turn.parent) if other.id != turn.id]
    if start == 0:
        wholes = [other for other in tree.turns() if other.is_whole and other not in before]
        known += [_turn_ids(other) for other in wholes if other.id != turn.id]
    return [ids for ids in known if len(ids)]


def _children(tree: TurnTree, turn_id: int | None) -> list[Turn]:
    return [turn for turn in tree.turns() if turn.parent == turn_id]


def _turn_ids(turn: Turn) -> Ids:
    return _as_ids(turn.prompt_ids + turn.answer_ids)


def _locate(ids: Ids, tail: Ids) -> int | None:
    """Where `tail` begins in `ids`, agreeing to the end of either; None where it does not, or not surely once."""
    sure = min(_SURE, len(tail))
    found = [at for at in _occurrences(ids, tail[:sure]) if at and _agree(ids[at:], tail)]
    if len(found) > 1 and len(ids) - found[1] >= len(tail):  # all of it, twice
        return None
    return found[0] if found else None


def _occurrences(ids: Ids, part: Ids) -> Iterator[int]:
    """Where `part` stands in `ids`, in order."""
    if not 0 < len(part) <= len(ids):
        return
    for at in (ids[: len(ids) - len(part) + 1] == part[0]).nonzero()[0]:
        if np.array_equal(ids[at : at + len(part)], part):
            yield int(at)


def _agree(one: Ids, other: Ids) -> bool:
    """Whether one begins with the other."""
    length = min(len(one), len(other))
    return bool(np.array_equal(one[:length], other[:length]))


def _starts_with(ids: Ids, start: Ids) -> bool:
    return len(ids) >= len(start) and bool(np.array_equal(ids[: len(start)], start))


def _num_common(one: Ids, other: Ids) -> int:
    length = min(len(one), len(other))
    differ = (one[:length] != other[:length]).nonzero()[0]
    return int(differ[0]) if len(differ) else length


def _as_ids(ids: Sequence[int]) -> Ids:
    return np.array(ids, dtype=np.int32)
