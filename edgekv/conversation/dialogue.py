"""A dialogue given whole, as programs that keep their own history send it: what of it is known here already.

Knows messages and turns; nothing of token ids, models or threads. Texts decide: an exchange is known where a turn
has the same words, so that its stored token ids are used again instead of tokenizing the answer a second time.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from edgekv.errors import ConversationError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from edgekv.conversation.turns import Turn, TurnTree

SYSTEM_ROLES = ("system", "developer")
JOINT = "\n\n"


@dataclass(frozen=True, slots=True)
class Dialogue:
    """Messages in the form of turns: `said` are the exchanges so far, `question` waits for its answer."""

    system: str | None
    said: list[tuple[str, str]]
    question: str

    @classmethod
    def of(cls, messages: Sequence[tuple[str, str]]) -> Dialogue:
        """From (role, content) pairs. Neighbours of one role count as one message, with an empty line between.

        Raises:
            ConversationError: the messages are no dialogue that a user's message ends.
        """
        joined: list[tuple[str, str]] = []
        for role, content in messages:
            role = "system" if role in SYSTEM_ROLES else role  # noqa: PLW2901
            if role not in ("system", "user", "assistant"):
                raise ConversationError(f"no message has the role {role!r}: system, user or assistant")
            if joined and joined[-1][0] == role:
                joined[-1] = (role, joined[-1][1] + JOINT + content)
            else:
                joined.append((role, content))
        system = joined.pop(0)[1] if joined and joined[0][0] == "system" else None
        for at, (role, _) in enumerate(joined):
            if role == "system":
                raise ConversationError("a system message stands in the middle; put it first")
            if role != ("assistant" if at % 2 else "user"):
                raise ConversationError(
                    "the dialogue begins with an answer; it has to begin with the user's words"
                )
        if len(joined) % 2 == 0:
            raise ConversationError("the last message has to be the user's: it is what is answered")
        texts = [content for _, content in joined]
        return cls(system, list(zip(texts[:-1:2], texts[1::2], strict=True)), texts[-1])


def known_part(tree: TurnTree, said: Sequence[tuple[str, str]]) -> tuple[int | None, int]:
    """The turn after which `said` goes on being unknown (None: from the start), and how many exchanges are known.

    Of turns with the same words the newest counts: its KV is most likely still there.
    """
    children: dict[int | None, list[Turn]] = {}
    for turn in tree.turns():
        children.setdefault(turn.parent, []).append(turn)
    found: tuple[int | None, int] = (None, 0)
    ends: list[int | None] = [None]
    for depth, (user, answer) in enumerate(said, start=1):
        ends = [
            turn.id
            for end in ends
            for turn in children.get(end, ())
            if turn.state in ("complete", "stopped") and _same(turn, user, answer)
        ]
        if not ends:
            break
        found = (max(end for end in ends if end is not None), depth)
    return found


def _same(turn: Turn, user: str, answer: str) -> bool:
    # Programs trim answers before they keep them; the tokens that were generated are the truth all the same.
    return turn.user == user and turn.answer.strip() == answer.strip()
