"""`bench passkey`: a number hidden at several depths of a conversation far longer than the trained window.

A depth counts where exact attention finds the number in a context that fits the window; there the budget has to
find it in the long one. That context is the text's front, and besides the long one's end, since the words before a
question can by themselves make a small model miss. Depths are taken deepest first, so that each keeps the KV in
front of its own. Which of two words begins the answer can hang on a single token more or less in front of it, so
several numbers may be hidden around each depth, one at a time.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import TYPE_CHECKING

from edgekv.bench.inside import runner_of
from edgekv.bench.setting import SEQUENCE, generate
from edgekv.engine.front import ModelFront
from edgekv.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from edgekv.bench.report import Row
    from edgekv.bench.setting import Setting
    from edgekv.engine.engine import Engine
    from edgekv.models.tokenizer import Tokenizer

CONTEXT = 65_536
SHORT_CONTEXT = 4_096
DEPTHS = (0, 25, 50, 75, 100)
_MARGIN = 6  # tokens of an answer beyond those of the number
_STEP = 1  # percent between the numbers around one depth, towards the middle
_NUMBERS = (3146927, 4751100, 1491251, 8263519, 5920374, 7318046, 2685493)
_ADJECTIVES = ("rapid", "calm", "jolly", "noble", "quiet", "opal", "tidy")
_NOUNS = ("basket", "jacket", "orchard", "lantern", "ribbon", "drawer", "turbine")


@dataclass(frozen=True, slots=True)
class _Hidden:
    """What is hidden for one depth, `at` so many percent, and how it is asked for."""

    depth: int
    at: int
    needle: str
    question: str
    answer: str


def hidden_at(depths: Sequence[int], numbers: int = 1) -> list[_Hidden]:
    """`numbers` of them for each depth, the first one there and the others beside it; deepest first."""
    found: list[_Hidden] = []
    for again in range(numbers):
        for depth in sorted(set(depths), reverse=True):
            name, value = _name_and_number(len(found))
            at = depth + (_STEP if depth < 50 else -_STEP) * again
            said = f"The special number for {name} is"
            question = f"\n\nWhat is the special number for {name}? {said}"
            found.append(_Hidden(depth, at, f" {said} {value}.", question, str(value)))
    return sorted(found, key=lambda thing: thing.at, reverse=True)


def _name_and_number(number: int) -> tuple[str, int]:
    turn, place = divmod(number, len(_NUMBERS))
    name = f"{_ADJECTIVES[place]}-{_NOUNS[(place + turn) % len(_NOUNS)]}"
    return name, (_NUMBERS[place] - 1_000_000 + turn * 2_345_679) % 9_000_000 + 1_000_000


def measure(
    setting: Setting,
    context: int,
    short_context: int,
    depths: Sequence[int],
    numbers: int,
    progress: Callable[[str], None],
) -> list[Row]:
    """How many are found at each depth, and of what exact attention finds. ConfigError without a tokenizer."""
    front = setting.model.front
    if not isinstance(front, ModelFront):
        raise ConfigError("passkeys need the model's tokenizer: install llama-cpp-python")
    setting.check_room(short_context)
    if context < short_context:
        raise ConfigError(
            f"--context {context} is shorter than --short-context {short_context}: turn them round"
        )
    things, text = hidden_at(depths, numbers), setting.long_text(context)
    everything = text.take(context)
    contexts = {"front": everything[:short_context], "end": everything[-short_context:], "": everything}
    found: dict[str, list[bool]] = {}
    with setting.engine(setting.roomy(context)) as engine:
        runner = runner_of(engine)
        long_attention = runner.attention
        for name, ids in contexts.items():
            runner.attention = "exact" if name else long_attention
            search = _Search(engine, front.tokenizer, ids, progress)
            found[name] = [search.finds(thing) for thing in things]
            engine.release(SEQUENCE, forget=False)
    labels = setting.labels(context, text.name)
    rows: list[Row] = []
    for name in ("front", "end"):
        peer = f"(peer: exact, {name} {short_context:,})"
        for depth in sorted(set(depths), reverse=True):
            here = [place for place, thing in enumerate(things) if thing.depth == depth]
            near, long = (sum(found[which][place] for place in here) for which in (name, ""))
            row = labels.row(f"passkey_found_{name}", f"of {numbers} {peer}", ours=long, peer=near)
            rows.append(dataclasses.replace(row, depth=depth))
        wanted = sum(found[name])
        both = sum(near and long for near, long in zip(found[name], found[""], strict=True))
        share = both / wanted if wanted else None
        rows.append(
            labels.row(f"passkey_solved_{name}", f"numbers {peer}", ours=both, peer=wanted, ratio=share)
        )
    return rows


@dataclass(frozen=True, slots=True)
class _Search:
    """One engine over one text."""

    engine: Engine
    tokenizer: Tokenizer
    ids: Sequence[int]
    progress: Callable[[str], None]

    def finds(self, thing: _Hidden) -> bool:
        """Whether the likeliest tokens after the question hold the number."""
        tokenizer = self.tokenizer
        needle = tokenizer.encode(thing.needle, special=False)
        question = tokenizer.encode(thing.question, special=False)
        answer = len(tokenizer.encode(thing.answer, special=False)) + _MARGIN
        filler = list(self.ids[: len(self.ids) - len(needle) - len(question) - answer])
        place = self._sentence_end(filler, len(filler) * thing.at // 100)
        self.progress(f"{len(self.ids)} tokens, a number at {thing.at} %")
        context = [*filler[:place], *needle, *filler[place:], *question]
        result = generate(self.engine, context, answer)
        return thing.answer in tokenizer.decode(result.token_ids)

    def _sentence_end(self, ids: Sequence[int], near: int) -> int:
        """The place between two sentences that is nearest."""
        ends = self.tokenizer.sentence_ends()
        gaps = [0, *(place + 1 for place, token in enumerate(ids) if token in ends), len(ids)]
        return min(gaps, key=lambda gap: abs(gap - near))
