"""Teacher forcing: the logits after given tokens, as the product computes them: step by step or in blocks."""

from __future__ import annotations

from typing import TYPE_CHECKING

from edgekv.bench.inside import residency_of, runner_of
from edgekv.bench.setting import SEQUENCE
from edgekv.cache.directory import Directory
from edgekv.cache.leaf import LEAF_TOKENS
from edgekv.cache.sequence import Sequence as CachedSequence
from edgekv.tiers.arrivals import Arrivals
from edgekv.tiers.residency import EXTENT_COLUMNS

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from torch import Tensor

    from edgekv.engine.engine import Engine


def forced_steps(engine: Engine, token_ids: Sequence[int]) -> Iterator[Tensor]:
    """Logits `[vocab]` float32 after each of `token_ids`, appended to the sequence that is warm already."""
    runner, residency = runner_of(engine), residency_of(engine)
    sequence = residency.sequences[SEQUENCE]
    try:
        for token in token_ids:
            hidden = runner.forward(sequence, [token], Arrivals())
            residency.flush(sequence, at_least=EXTENT_COLUMNS)
            yield runner.logits(hidden[-1:])[0]
    finally:
        residency.stream.close()


def block_logits(engine: Engine, token_ids: Sequence[int]) -> Iterator[Tensor]:
    """Logits `[T, vocab]` float32 of all of `token_ids`, block by block as a prefill computes them."""
    runner, residency = runner_of(engine), residency_of(engine)
    sequence = CachedSequence(
        SEQUENCE, durable=False, directory=Directory(residency.mover.device.shape.num_layers)
    )
    residency.sequences[SEQUENCE] = sequence
    step = residency.block_columns * LEAF_TOKENS
    try:
        for start in range(0, len(token_ids), step):
            yield runner.logits(runner.forward(sequence, token_ids[start : start + step], Arrivals()))
    finally:
        residency.stream.close()
        residency.release(sequence)
