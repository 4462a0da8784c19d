"""Needles: sentences hidden in a long text, and questions that ask for them. Does a budget find what exact finds?

The text is computed exactly once; then question and answer are computed from it, attending to everything and to
the budget. Only items that exact attention solves count. Knows items; the tokenizer is the model's.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from importlib.resources import files
from typing import TYPE_CHECKING

import msgspec

from edgekv.bench.forking import forked
from edgekv.bench.text import load_text
from edgekv.engine.build import make_selector
from edgekv.engine.front import ModelFront
from edgekv.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import Path

    from edgekv.bench.forking import Fork
    from edgekv.bench.report import Row
    from edgekv.bench.setting import Setting
    from edgekv.engine.engine import Engine
    from edgekv.models.tokenizer import Tokenizer

TOKENS = 7400
ITEMS = 10
_MARGIN = 6  # tokens of an answer beyond those of what is asked for


class Needle(msgspec.Struct, frozen=True):
    """One sentence, and where in the text it is put: 0 at its beginning, 1 at its end."""

    text: str
    depth: float


class Item(msgspec.Struct, frozen=True):
    """One question. `context` holds the needles already, or they are put into the bundled novel."""

    id: str
    question: str
    answer_prefix: str
    answers: list[str]
    context: str | None = None
    needles: list[Needle | str] = msgspec.field(default_factory=list)


@dataclass(frozen=True, slots=True)
class Solved:
    """Of one item: whether exact attention, and each method, gave all that was asked for."""

    num_tokens: int
    exact: bool
    policies: dict[str, bool]


def load_items(path: Path | None, count: int) -> list[Item]:
    """The first `count` items of a file of JSON lines, or the bundled ones. Raises ConfigError."""
    try:
        if path is None:
            data = files("edgekv.bench").joinpath("texts/needles.jsonl").read_bytes()
        else:
            data = path.read_bytes()
        return [msgspec.json.decode(line, type=Item) for line in data.splitlines()[:count]]
    except (OSError, msgspec.DecodeError) as error:
        raise ConfigError(f"--needles {path} cannot be read as needle items: {error}") from error


def measure(
    setting: Setting,
    engine: Engine,
    items: Sequence[Item],
    policies: Sequence[str],
    progress: Callable[[str], None],
) -> list[Row]:
    """The share of items that each method solves of those that exact attention solves; none without a tokenizer."""
    front = setting.model.front
    if not items or not isinstance(front, ModelFront):
        return []
    found = []
    for item in items:
        progress(f"needle {item.id}")
        found.append(_solve(setting, engine, item, policies, front.tokenizer))
    counted = [each for each in found if each.exact]
    labels = dataclasses.replace(
        setting.labels(max(each.num_tokens for each in found)), attention="selected", text="needles"
    )
    rows = []
    for policy in policies:
        solved = sum(each.policies[policy] for each in counted)
        row = labels.row(
            "needle_solved", f"items (peer: exact, of {len(items)})", ours=solved, peer=len(counted)
        )
        share = solved / len(counted) if counted else None
        rows.append(
            dataclasses.replace(
                row, ratio=share, policy=policy, budget=setting.config.budget, runs=len(items)
            )
        )
    return rows


def _solve(
    setting: Setting, engine: Engine, item: Item, policies: Sequence[str], tokenizer: Tokenizer
) -> Solved:
    context = _context(setting, item, tokenizer)
    question = tokenizer.encode(f"\n\n{item.question} {item.answer_prefix}", special=False)
    longest = len(tokenizer.encode(" and ".join(item.answers), special=False)) + _MARGIN
    num_tokens = len(context) + len(question) + longest
    setting.check_room(num_tokens)
    with forked(setting, engine, context) as fork:
        fork.exactly()
        exact = _finds(fork, item, question, longest, tokenizer)
        by_policy = dict.fromkeys(policies, False)
        for policy in policies if exact else ():
            fork.selecting(make_selector(policy, setting.model.front), setting.config.budget)
            by_policy[policy] = _finds(fork, item, question, longest, tokenizer)
    return Solved(num_tokens, exact, by_policy)


def _finds(fork: Fork, item: Item, question: Sequence[int], longest: int, tokenizer: Tokenizer) -> bool:
    """Whether the likeliest tokens after the question hold every answer."""
    logits, said = fork.feed(question), []
    for _ in range(longest):
        said.append(int(logits.argmax()))
        logits = fork.feed(said[-1:])
    text = tokenizer.decode(said)
    return all(answer in text for answer in item.answers)


def _context(setting: Setting, item: Item, tokenizer: Tokenizer) -> list[int]:
    """The item's own text, or the bundled novel with its needles put between sentences."""
    if item.context is not None:
        return tokenizer.encode(item.context, special=False, add_bos=True)
    needles = [needle for needle in item.needles if isinstance(needle, Needle)]
    hidden = [tokenizer.encode(f" {needle.text}", special=False) for needle in needles]
    ids = load_text(setting.model_path).take(TOKENS - sum(map(len, hidden)))
    ends = tokenizer.sentence_ends()
    gaps = [0, *(place + 1 for place, token in enumerate(ids) if token in ends), len(ids)]
    places = [min(gaps, key=lambda gap: abs(gap - needle.depth * len(ids))) for needle in needles]
    for place, needle in sorted(zip(places, hidden, strict=True), reverse=True):
        ids[place:place] = needle
    return ids
