"""Several ways on from one prefix: the same KV read exactly, and by each method of selection.

Knows how a runner is told what to attend to and how a sequence is taken back; measures nothing.
"""

from __future__ import annotations

from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from edgekv.bench.inside import residency_of, runner_of
from edgekv.bench.setting import SEQUENCE
from edgekv.cache.directory import Directory
from edgekv.cache.leaf import LEAF_TOKENS
from edgekv.cache.sequence import Sequence as CachedSequence
from edgekv.engine.build import selected_attention
from edgekv.tiers.arrivals import Arrivals

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from edgekv.bench.setting import Setting
    from edgekv.engine.engine import Engine
    from edgekv.policies.selection.selector import Selector


@dataclass(frozen=True, slots=True)
class Fork:
    """A sequence of `num_tokens` made exactly. Each way on begins there."""

    setting: Setting
    engine: Engine
    sequence: CachedSequence
    num_tokens: int

    def feed(self, token_ids: Sequence[int]) -> Tensor:
        """Logits `[vocab]` after all of `token_ids`, appended as one message would be."""
        runner, size = runner_of(self.engine), residency_of(self.engine).block_columns * LEAF_TOKENS
        hidden = torch.empty(0)
        for start in range(0, len(token_ids), size):
            hidden = runner.forward(self.sequence, token_ids[start : start + size], Arrivals())
        return runner.logits(hidden[-1:])[0]

    def steps(self, token_ids: Sequence[int]) -> Tensor:
        """Logits `[T, vocab]` after each of `token_ids`, appended one by one."""
        return torch.stack([self.feed([token]) for token in token_ids])

    def exactly(self) -> None:
        """From the prefix on, everything is attended to."""
        self._back()
        runner_of(self.engine).attention = "exact"

    def selecting(self, selector: Selector, budget: int) -> None:
        """From the prefix on, `budget` tokens are attended to."""
        self._back()
        runner, residency = runner_of(self.engine), residency_of(self.engine)
        config = self.setting.config.replace({"budget": budget})
        runner.selected = selected_attention(config, self.setting.model, residency, selector)
        runner.attention = "selected"

    def _back(self) -> None:
        residency_of(self.engine).shorten(self.sequence, self.num_tokens)


@contextmanager
def forked(setting: Setting, engine: Engine, token_ids: Sequence[int]) -> Iterator[Fork]:
    """A fork behind `token_ids`. `engine` was made with `--attention selected`, so that it keeps abstracts."""
    residency, runner = residency_of(engine), runner_of(engine)
    directory = Directory(residency.mover.device.shape.num_layers)
    sequence = CachedSequence(SEQUENCE, durable=False, directory=directory)
    residency.sequences[SEQUENCE] = sequence
    runner.attention = "exact"
    fork = Fork(setting, engine, sequence, len(token_ids))
    try:
        if token_ids:
            fork.feed(token_ids)
        yield fork
    finally:
        residency.stream.close()
        residency.release(sequence)
