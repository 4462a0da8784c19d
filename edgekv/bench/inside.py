"""The only place where a benchmark looks inside an engine: logits and counters that no user needs."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from edgekv.engine.engine import Engine
    from edgekv.engine.runner import Runner
    from edgekv.tiers.residency import Residency
    from edgekv_storage import Store


def runner_of(engine: Engine) -> Runner:
    """What runs blocks of tokens."""
    return engine._runner  # noqa: SLF001  # see the module


def residency_of(engine: Engine) -> Residency:
    """Who knows the warm sequences."""
    return engine._residency  # noqa: SLF001  # see the module


def store_of(engine: Engine) -> Store:
    """The store below it, for its counters."""
    disk = residency_of(engine).mover.disk
    assert disk is not None, "an engine with a disk tier"
    return disk.store
