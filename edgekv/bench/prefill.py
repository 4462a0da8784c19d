"""`bench prefill`: how fast the tokens of a cold sequence are computed, up to its first answer token."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

from edgekv.bench.alternate import alternate
from edgekv.bench.setting import SEQUENCE, generate

if TYPE_CHECKING:
    from collections.abc import Sequence

    from edgekv.bench.peer import LlamaCpp
    from edgekv.bench.report import Row
    from edgekv.bench.setting import Setting
    from edgekv.engine.engine import Engine

CONTEXTS = (2048, 7936)
PEER_CONTEXT = 16_384
_WARM_UP = 512


def measure(
    setting: Setting, contexts: Sequence[int], runs: int, peer_context: int | None = PEER_CONTEXT
) -> list[Row]:
    """Tokens per second, and seconds, for each context; everything fits in the device pool.

    llama.cpp runs at contexts of up to `peer_context` tokens.
    """
    setting.check_fits(max(contexts) + 1)
    rows = []
    for context in contexts:
        text = setting.long_text(context)
        ids = text.take(context)
        cells = context + 1 if context <= (peer_context or 0) else 0
        with setting.engine(setting.roomy(context + 1)) as engine, setting.peer(cells) as peer:
            ours_once(engine, ids[:_WARM_UP])
            if peer is not None:
                peer_once(peer, ids[:_WARM_UP])
            ours, peers = alternate(
                runs,
                lambda: ours_once(engine, ids),  # noqa: B023  # called in this turn of the loop
                None if peer is None else lambda: peer_once(peer, ids),  # noqa: B023
            )
        labels = setting.labels(context, text.name)
        rates = [context / s for s in ours]
        rows.append(
            labels.measured(
                "prefill_tokens_per_s", "tok/s", rates, [context / s for s in peers], better="higher"
            )
        )
        rows.append(labels.measured("prefill_seconds", "s", ours, peers, better="lower"))
    return rows + _kept(rows)


def _kept(rows: Sequence[Row]) -> list[Row]:
    """Of the speed at the shortest context, what is left at each longer one; where attention selects."""
    rates = [row for row in rows if row.metric == "prefill_tokens_per_s" and row.attention != "exact"]
    base = min(rates, key=lambda row: row.context or 0, default=None)
    return [row.share_of(base, "prefill_speed_kept") for row in rates if base is not None and row is not base]


def ours_once(engine: Engine, ids: Sequence[int]) -> float:
    """Seconds from the request to the first token, nothing cached before or after."""
    result = generate(engine, ids, at=time.perf_counter())
    assert result.usage.reused_tokens == 0, "a cold sequence"
    engine.release(SEQUENCE, forget=False)
    return result.timings.ttft_s


def peer_once(peer: LlamaCpp, ids: Sequence[int]) -> float:
    """The same of the peer; its cache keeps `ids`."""
    peer.shorten(0)
    start = time.perf_counter()
    peer.feed(ids)
    peer.greedy()
    return time.perf_counter() - start
