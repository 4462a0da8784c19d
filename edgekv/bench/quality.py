"""`bench quality`: what reading only a budget costs in quality, for any method of selection, budget and text.

One context is computed exactly; then the same tokens are forced twice over the same KV, attending to everything and
to the budget. The peer is the oracle: what the best choice of as many tokens would have reached.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, ClassVar

import torch

import edgekv_kernels as kernels
from edgekv.bench.fidelity import Distance
from edgekv.bench.forking import forked
from edgekv.bench.inside import watch_choices
from edgekv.bench.report import ratio
from edgekv.bench.text import BUNDLED, load_text
from edgekv.engine.build import make_selector
from edgekv.errors import ConfigError
from edgekv.policies.selection.methods import SELECTORS
from edgekv.policies.selection.selector import Selector

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from torch import Tensor

    from edgekv.bench.forking import Fork
    from edgekv.bench.report import Labels, Row
    from edgekv.bench.setting import Setting
    from edgekv.bench.text import Text
    from edgekv.engine.engine import Engine
    from edgekv.policies.selection.selector import AbstractsLike, Step

CONTEXT = 6000
STEPS = 96
BESIDE = 512  # a second budget that is always shown
ORACLE = "oracle"
_SAMPLE = 8  # the mass kept is taken in one of so many steps


@dataclass(frozen=True, slots=True)
class Plan:
    """What is measured: contexts of `context` tokens, `steps` forced after each, these methods and budgets."""

    context: int
    steps: int
    policies: tuple[str, ...]
    budgets: tuple[int, ...]

    @classmethod
    def of(cls, setting: Setting, context: int, steps: int, policies: Sequence[str]) -> Plan:
        """With the options' budget and the one shown beside it. Raises ConfigError for an unknown method."""
        chosen = tuple(dict.fromkeys(policies or [setting.config.selection]))
        for name in chosen:
            if name not in SELECTORS:
                raise ConfigError(f"--policy {name} is unknown; choose from {', '.join(SELECTORS)}")
        budgets = (setting.config.budget, BESIDE)
        return cls(context, steps, chosen, tuple(dict.fromkeys(budgets)))


@dataclass(slots=True)
class Watched(Selector):
    """A method, and the share of full attention that its choices kept."""

    needs_attended: ClassVar[bool] = True
    inner: Selector
    kept: list[float] = field(default_factory=list)
    _num_steps: dict[int, int] = field(default_factory=dict)

    def choosing(
        self, abstracts: AbstractsLike, columns: range, num_columns: int, around: Tensor
    ) -> kernels.Choosing | None:
        """See `Selector`: what is measured chooses as seldom as what people run."""
        return self.inner.choosing(abstracts, columns, num_columns, around)

    def saw(self, attend: kernels.TokenPass, layer: int, q: Tensor) -> None:
        """One layer of a pass of one token is through; everything lies in memory."""
        if self._is_sample(layer):
            num_tokens = attend.where.shape[1] * kernels.LEAF_TOKENS - attend.num_missing
            lse = kernels.leaf_logsumexp(
                q, attend.pool, attend.where[layer], num_tokens, attend.scale, attend.turns
            )
            mass = lse.softmax(-1).mean((0, 1))
            self.kept.append(float(mass[attend.columns(layer).long()].sum()))

    def _is_sample(self, layer: int) -> bool:
        seen = self._num_steps.get(layer, 0)
        self._num_steps[layer] = seen + 1
        return seen % _SAMPLE == 0

    def select(self, step: Step) -> int:
        """See `Selector`."""
        count = self.inner.select(step)
        if self._is_sample(step.layer):
            assert step.attended is not None
            mass = step.attended()
            missed = mass.sum() - mass[step.out[:count].long() - step.columns.start].sum()
            self.kept.append(1 - float(missed) / step.q[:, :, 0].numel())
        return count

    def reset(self) -> None:
        """See `Selector`."""
        self.inner.reset()


@dataclass(frozen=True, slots=True)
class Found:
    """What one method at one budget reached; the log-probabilities are means of the text's own tokens."""

    distance: Distance
    log_prob: float
    mass_kept: float


def measure(setting: Setting, engine: Engine, plan: Plan, progress: Callable[[str], None]) -> list[Row]:
    """Rows of every text, method and budget."""
    setting.check_room(plan.context + plan.steps + 1)
    names = [BUNDLED] if setting.text_path is not None else [BUNDLED, "memorybank"]
    texts = [load_text(setting.model_path, setting.text_path, name) for name in names]
    rows = []
    for text in {text.name: text for text in texts}.values():  # one only where no tokenizer is installed
        progress(f"{plan.context} tokens of {text.name}")
        rows += _of_text(setting, engine, text, plan, progress)
    return rows


def _of_text(
    setting: Setting, engine: Engine, text: Text, plan: Plan, progress: Callable[[str], None]
) -> list[Row]:
    ids = text.take(plan.context + plan.steps + 1)
    forced, following = ids[plan.context : -1], torch.tensor(ids[plan.context + 1 :])
    with forked(setting, engine, []) as nothing:
        alone = _log_prob(nothing.steps(forced), following)
    labels = dataclasses.replace(setting.labels(plan.context), text=text.name, attention="selected")
    policies = (ORACLE, *(name for name in plan.policies if name != ORACLE))
    rows = []
    with forked(setting, engine, ids[: plan.context]) as fork:
        fork.exactly()
        exact = fork.steps(forced)
        best = _log_prob(exact, following)
        for budget in plan.budgets:
            found = {}
            for policy in policies:
                progress(f"{text.name}: {policy} with {budget} tokens")
                found[policy] = _forced(fork, policy, budget, forced, following, exact)
            for policy in plan.policies:
                made = _rows(labels, found[policy], found[ORACLE], best, alone)
                rows += [dataclasses.replace(row, policy=policy, budget=budget) for row in made]
    return rows


def _forced(
    fork: Fork, policy: str, budget: int, forced: Sequence[int], following: Tensor, exact: Tensor
) -> Found:
    watched = Watched(make_selector(policy, fork.setting.model.front))
    fork.selecting(watched, budget)
    watch_choices(fork.engine, watched.saw)
    logits, distance = fork.steps(forced), Distance()
    distance.add(exact, logits)
    kept = sum(watched.kept) / len(watched.kept) if watched.kept else 1.0
    return Found(distance, _log_prob(logits, following), kept)


def _log_prob(logits: Tensor, following: Tensor) -> float:
    """Mean log-probability of `following` int64 `[T]` under logits `[T, vocab]`."""
    return float(logits.cpu().double().log_softmax(-1).gather(1, following[:, None]).mean())


def _rows(labels: Labels, ours: Found, oracle: Found, best: float, alone: float) -> list[Row]:
    """`best`: mean log-probability under exact attention; `alone`: without the context."""
    kl, best_kl = ours.distance.mean_kl, oracle.distance.mean_kl
    rows = [
        labels.row(
            "kl_nats", "nats (peer: the oracle)", ours=kl, peer=best_kl, ratio=ratio(kl, best_kl, "lower")
        ),
        labels.row("top1_agreement", "share", ours=ours.distance.top1, peer=oracle.distance.top1),
        labels.row("mass_kept", "share", ours=ours.mass_kept, peer=oracle.mass_kept),
    ]
    if best > alone:
        scores = [(found.log_prob - alone) / (best - alone) for found in (ours, oracle)]
        rows.append(labels.row("retained_score", "share", ours=scores[0], peer=scores[1]))
    return rows
