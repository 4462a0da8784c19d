"""From a message to the token ids it adds to a context.

Knows the model's tokenizer and chat template by their faces only. Renders the new turn and nothing else,
except where the template itself rewrites earlier turns.
"""

from __future__ import annotations

from array import array
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from edgekv.conversation.turns import Turn


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


def trim_to_text(tokenizer: TokenizerLike, ids: Sequence[int], text: str) -> array[int]:
    """The shortest start of `ids` that still spells `text`: without the tokens of a matched stop string."""
    from edgekv.models.tokenizer import Detokenizer  # noqa: PLC0415  numpy comes with it

    detokenizer = Detokenizer(tokenizer)  # as the engine spelt it: a leading space may not be the text's
    kept = num_characters = 0
    while kept < len(ids) and num_characters < len(text):
        num_characters += len(detokenizer.push(ids[kept]))
        kept += 1
    return array("i", ids[:kept])
