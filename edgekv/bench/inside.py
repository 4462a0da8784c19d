"""The only place where a benchmark looks inside an engine: logits and counters that no user needs."""

from __future__ import annotations

from typing import TYPE_CHECKING

from edgekv.conversation.render import render_turn

if TYPE_CHECKING:
    from collections.abc import Sequence

    from edgekv.engine.engine import Engine
    from edgekv.engine.runner import Runner
    from edgekv.runtime import Runtime
    from edgekv.tiers.residency import Residency
    from edgekv_storage import Store


def runner_of(engine: Engine) -> Runner:
    """What runs blocks of tokens."""
    return engine._runner  # noqa: SLF001  # see the module


def residency_of(engine: Engine) -> Residency:
    """Who knows the warm sequences."""
    return engine._residency  # noqa: SLF001  # see the module


def engine_of(runtime: Runtime) -> Engine:
    """The engine of a whole Runtime."""
    from edgekv.engine.engine import Engine  # noqa: PLC0415  torch comes with it

    engine = runtime._worker.engine  # noqa: SLF001  # see the module
    assert isinstance(engine, Engine)
    return engine


def message_tokens(runtime: Runtime, text: str) -> int:
    """Tokens of a new conversation whose only message is `text`, up to where the answer begins."""
    front = runtime._worker.front  # noqa: SLF001  # see the module
    return len(render_turn(front, [], runtime.config.system, text)[0])


def decode_ids(runtime: Runtime, ids: Sequence[int]) -> str:
    """Text of token ids."""
    return runtime._worker.front.tokenizer.decode(ids)  # noqa: SLF001  # see the module


def store_of(engine: Engine) -> Store:
    """The store below it, for its counters."""
    disk = residency_of(engine).mover.disk
    assert disk is not None, "an engine with a disk tier"
    return disk.store
