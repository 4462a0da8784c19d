"""From a message to the token ids it adds to a context.

Knows the model's tokenizer and chat template by their faces only. Renders the new turn and nothing else,
except where the template itself rewrites earlier turns.
"""

from __future__ import annotations

import dataclasses
from array import array
from typing import TYPE_CHECKING, Protocol

from edgekv.conversation.turns import Turn

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

FEW = 4
"""So many turns of history show how a template writes the next one; see `exchange_turns`."""


class TokenizerLike(Protocol):
    """What a conversation needs of a tokenizer."""

    @property
    def end_ids(self) -> frozenset[int]:
        """Ids that end an answer."""
        ...

    @property
    def adds_space_prefix(self) -> bool:
        """Whether the first word comes with a space that is not the text's."""
        ...

    def piece(self, token_id: int, *, special: bool = False) -> bytes:
        """The bytes of one token."""
        ...

    def encode_pieces(self, pieces: Sequence[tuple[str, bool]], *, add_bos: bool = False) -> list[int]:
        """Ids of (text, is markup) pieces; what a user wrote is never read as markup."""
        ...

    def decode(self, ids: Iterable[int], *, special: bool = False) -> str:
        """Text of `ids`."""
        ...


class TurnTextLike(Protocol):
    """What a turn adds: pieces of (text, is markup), and whether earlier turns stay as they were."""

    @property
    def prefix_unchanged(self) -> bool:
        """Whether the template repeats what is stored before this turn."""
        ...

    @property
    def pieces(self) -> list[tuple[str, bool]]:
        """Text and whether it is markup, in order."""
        ...


class TemplateLike(Protocol):
    """What a conversation needs of a chat template."""

    @property
    def stop(self) -> tuple[str, ...]:
        """Texts that end an answer besides end tokens."""
        ...

    def render_turn(
        self,
        history: Sequence[Mapping[str, str]],
        new_messages: Sequence[Mapping[str, str]],
        *,
        answer_ended: bool = True,
    ) -> TurnTextLike:
        """From the end of the last answer's tokens to the new answer's start."""
        ...

    def render_pieces(self, messages: Sequence[Mapping[str, str]]) -> list[tuple[str, bool]]:
        """The whole dialogue up to the new answer's start."""
        ...


class FrontLike(Protocol):
    """The model as a conversation sees it: text in and out, its window, its identity."""

    @property
    def tokenizer(self) -> TokenizerLike:
        """Text to ids and back."""
        ...

    @property
    def template(self) -> TemplateLike:
        """How turns are written."""
        ...

    @property
    def fingerprint(self) -> bytes:
        """32 bytes that name weights, tokenizer and positions."""
        ...

    @property
    def context_length(self) -> int:
        """The trained window, in tokens."""
        ...

    @property
    def name(self) -> str:
        """The model's name, for people."""
        ...


def messages_of(path: Sequence[Turn], system: str | None) -> list[dict[str, str]]:
    """The dialogue so far in the form chat templates take; an unanswered turn has an empty answer."""
    messages = [{"role": "system", "content": system}] if system is not None else []
    for turn in path:
        messages.append({"role": "user", "content": turn.user})
        messages.append({"role": "assistant", "content": turn.answer})
    return messages


def render_turn(
    front: FrontLike, path: Sequence[Turn], system: str | None, user_text: str
) -> tuple[array[int], bool]:
    """The ids that a new user message adds after `path`, up to where the answer begins.

    The second value is True where they are the whole context instead: the template rewrites earlier turns
    (drops their thinking, say), so what is stored is not what the model should see next.
    """
    history = messages_of(path, system)
    new = [{"role": "user", "content": user_text}]
    ended = path[-1].answer_ended if path else True
    turn = front.template.render_turn(history, new, answer_ended=ended)
    if turn.prefix_unchanged:
        return array("i", front.tokenizer.encode_pieces(turn.pieces, add_bos=not path)), False
    whole = front.template.render_pieces([*history, *new])
    return array("i", front.tokenizer.encode_pieces(whole, add_bos=True)), True


def exchange_turns(
    front: FrontLike, path: Sequence[Turn], system: str | None, said: Sequence[tuple[str, str]], first_id: int
) -> list[Turn]:
    """Turns of exchanges that were made elsewhere, one behind the other, behind `path`; ids count from `first_id`.

    Rendering the whole history for each one would take hours where there are thousands. Most templates write a
    turn the same way whatever is far before it: then a few turns are history enough. The first turn for which
    that could matter and the last one tell whether this template does; one that counts rounds, say, does not.
    """
    if len(said) <= FEW:
        return _exchange_turns(front, path, system, said, first_id, seen=None)
    turns = _exchange_turns(front, path, system, said, first_id, seen=FEW)
    last = len(said) - 1
    for at in {min(last, max(0, FEW + 1 - len(path))), last}:
        whole = render_turn(front, [*path, *turns[:at]], system, said[at][0])
        if whole != (turns[at].prompt_ids, turns[at].is_whole):
            return _exchange_turns(front, path, system, said, first_id, seen=None)
    return turns


def _exchange_turns(
    front: FrontLike,
    path: Sequence[Turn],
    system: str | None,
    said: Sequence[tuple[str, str]],
    first_id: int,
    *,
    seen: int | None,
) -> list[Turn]:
    """With the last `seen` turns as history, but where the template writes everything anew."""
    before = list(path)
    for turn_id, (user, answer) in enumerate(said, first_id):
        history = before if seen is None else before[-seen:]
        prompt_ids, is_whole = render_turn(front, history, system, user)
        if is_whole and len(history) < len(before):
            prompt_ids, is_whole = render_turn(front, before, system, user)
        parent = before[-1].id if before else None
        turn = Turn(turn_id, parent, user=user, is_whole=is_whole, prompt_ids=prompt_ids)
        if not answer and turn_id == first_id + len(said) - 1:  # the last message still waits for one
            before.append(turn)
            break
        ids = array("i", front.tokenizer.encode_pieces([(answer, False)]))
        before.append(dataclasses.replace(turn, answer=answer, answer_ids=ids, state="complete"))
    return before[len(path) :]


def trim_to_text(tokenizer: TokenizerLike, ids: Sequence[int], text: str) -> array[int]:
    """The shortest start of `ids` that still spells `text`: without the tokens of a matched stop string."""
    from edgekv.models.tokenizer import Detokenizer  # noqa: PLC0415  numpy comes with it

    detokenizer = Detokenizer(tokenizer)  # as the engine spelt it: a leading space may not be the text's
    kept = num_characters = 0
    while kept < len(ids) and num_characters < len(text):
        num_characters += len(detokenizer.push(ids[kept]))
        kept += 1
    return array("i", ids[:kept])
