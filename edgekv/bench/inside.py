"""The only place where a benchmark looks inside an engine: logits and counters that no user needs."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

import edgekv_kernels as kernels
from edgekv.conversation.render import render_turn

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from torch import Tensor

    from edgekv.cache.sequence import Sequence as CachedSequence
    from edgekv.conversation.turns import Turn
    from edgekv.engine.engine import Engine
    from edgekv.engine.runner import Runner
    from edgekv.models.decoder import Attend
    from edgekv.runtime import Runtime
    from edgekv.tiers.arrivals import Arrivals
    from edgekv.tiers.residency import Residency
    from edgekv_storage import LeafRead, Store, Transfer


class ExactLike(Protocol):
    """What a runner asks for the attention of a pass."""

    def begin(self, sequence: CachedSequence, token_ids: Sequence[int], arrivals: Arrivals) -> Attend:
        """`attend` for a pass over the next tokens."""
        ...


def runner_of(engine: Engine) -> Runner:
    """What runs blocks of tokens."""
    return engine._runner  # noqa: SLF001  # see the module


def attend_by(engine: Engine, method: ExactLike) -> None:
    """From now on what would attend to everything attends by `method`."""
    engine._runner._exact = method  # type: ignore[assignment]  # noqa: SLF001  # see the module


def watch_choices(engine: Engine, saw: Callable[[kernels.TokenPass, int, Tensor], None]) -> None:
    """From now on passes of one token run layer by layer, and `saw(pass, layer, q)` is told after each layer."""
    selected = engine._runner.selected  # noqa: SLF001  # see the module
    assert selected is not None
    begin = selected.begin

    def begun(sequence: CachedSequence, token_ids: Sequence[int], arrivals: Arrivals) -> Attend:
        attend = begin(sequence, token_ids, arrivals)
        if not isinstance(attend, kernels.TokenPass):
            return attend

        def one_layer(layer: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
            out = attend(layer, q, k, v)
            saw(attend, layer, q)
            return out

        return one_layer

    selected.begin = begun  # type: ignore[method-assign]  # this one only


def residency_of(engine: Engine) -> Residency:
    """Who knows the warm sequences."""
    return engine._residency  # noqa: SLF001  # see the module


def engine_of(runtime: Runtime) -> Engine:
    """The engine of a whole Runtime."""
    from edgekv.engine.engine import Engine  # noqa: PLC0415  torch comes with it

    engine = runtime._worker.engine  # noqa: SLF001  # see the module
    assert isinstance(engine, Engine)
    return engine


def message_tokens(runtime: Runtime, text: str, turns: Sequence[Turn] = ()) -> int:
    """Tokens that the message `text` adds to a conversation of `turns`, up to where the answer begins."""
    front = runtime._worker.front  # noqa: SLF001  # see the module
    return len(render_turn(front, turns, runtime.config.system, text)[0])


def decode_ids(runtime: Runtime, ids: Sequence[int]) -> str:
    """Text of token ids."""
    return runtime._worker.front.tokenizer.decode(ids)  # noqa: SLF001  # see the module


def tier_bytes(engine: Engine) -> dict[str, dict[str, int]]:
    """Bytes of leaves and of their abstracts in each tier; of what was appended, on disk."""
    mover = residency_of(engine).mover
    found = {}
    for tier in (mover.device, mover.host):
        leaves = (tier.slots.num_slots - tier.slots.num_free) * tier.shape.leaf_bytes
        found[tier.tier.value] = {"leaf": leaves, "index": tier.ledger[tier.tier].used - leaves}
    if mover.disk is not None:
        stats = mover.disk.store.stats()
        found["disk"] = {"leaf": stats.appended_leaf_bytes, "index": stats.appended_section_bytes}
    return found


def store_of(engine: Engine) -> Store:
    """The store below it, for its counters."""
    disk = residency_of(engine).mover.disk
    assert disk is not None, "an engine with a disk tier"
    return disk.store


class LeafBytes:
    """Counts bytes of leaves that are asked of a store from now on; its own counter has those of sections too."""

    def __init__(self, store: Store) -> None:
        self.num_bytes = 0
        read = store.read

        def counted(requests: Sequence[LeafRead], priority: int = 0, *, waits: bool = False) -> Transfer:
            self.num_bytes += sum(len(request.out) for request in requests)
            return read(requests, priority, waits=waits)

        store.read = counted  # type: ignore[method-assign]  # this one store only
