"""`bench fidelity`: do we compute what the file says? Our next-token distributions over real text against
llama.cpp's and against a naive fp32 reference on the same dequantized weights.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from edgekv.bench.reference import ReferenceModel
from edgekv.bench.report import ratio
from edgekv.bench.steps import block_logits
from edgekv.errors import Unsupported

if TYPE_CHECKING:
    from collections.abc import Sequence

    from edgekv.bench.peer import LlamaCpp
    from edgekv.bench.report import Row
    from edgekv.bench.setting import Setting

POSITIONS = 2000


@dataclass(slots=True)
class Distance:
    """Sums over positions of how far one model's distributions are from another's."""

    positions: int = 0
    kl: float = 0.0
    agreeing: int = 0

    def add(self, truth: Tensor, other: Tensor) -> None:
        """Take in logits `[T, vocab]` of both at the same positions."""
        log_p, log_q = truth.double().log_softmax(-1), other.double().log_softmax(-1)
        self.kl += float((log_p.exp() * (log_p - log_q)).sum())
        self.agreeing += int((truth.argmax(-1) == other.argmax(-1)).sum())
        self.positions += len(truth)

    @property
    def mean_kl(self) -> float:
        """Nats per position of KL(truth || other)."""
        return self.kl / self.positions

    @property
    def top1(self) -> float:
        """Share of positions with the same likeliest token."""
        return self.agreeing / self.positions


@dataclass(frozen=True, slots=True)
class _Distances:
    ours_to_reference: Distance
    ours_to_peer: Distance
    reference_to_peer: Distance


def measure(setting: Setting, positions: int) -> list[Row]:
    """Rows against the reference, and against llama.cpp when it is wanted.

    Raises:
        Unsupported: the reference does not compute this model's kind of rotary scaling.
    """
    setting.check_room(positions)
    ids = setting.text.take(positions)
    with setting.peer(positions) as peer:
        found = _distances(setting, ids, peer)
    labels, ours = setting.labels(positions), found.ours_to_reference
    rows = [
        labels.row("top1_agreement_reference", "share", ours=ours.top1),
        labels.row("kl_nats_reference", "nats", ours=ours.mean_kl),
    ]
    if peer is not None:
        to_peer, best = found.ours_to_peer, found.reference_to_peer
        rows += [
            labels.row(
                "kl_nats",
                "nats to llama.cpp (peer: the fp32 reference)",
                ours=to_peer.mean_kl,
                peer=best.mean_kl,
                ratio=ratio(to_peer.mean_kl, best.mean_kl, "lower"),
            ),
            labels.row(
                "top1_agreement",
                "share with llama.cpp (peer: the fp32 reference)",
                ours=to_peer.top1,
                peer=best.top1,
                ratio=ratio(to_peer.top1, best.top1, "higher"),
            ),
        ]
    return rows


@torch.inference_mode()
def _distances(setting: Setting, ids: Sequence[int], peer: LlamaCpp | None) -> _Distances:
    """Block by block: logits of all positions at once would be gigabytes."""
    found = _Distances(Distance(), Distance(), Distance())
    config = setting.model.decoder.config
    if config.rope_scaling.type == "yarn":
        raise Unsupported("the fp32 reference does not compute yarn scaling; measure another model")
    reference = ReferenceModel(setting.model_path, config)
    hidden, start = reference.hidden(ids), 0
    with setting.engine(setting.roomy(len(ids))) as engine:
        for block in block_logits(engine, ids):
            stop, ours = start + len(block), block.cpu()
            truth = reference.head(hidden[start:stop])
            found.ours_to_reference.add(truth, ours)
            if peer is not None:
                theirs = torch.from_numpy(peer.block_logits(ids[start:stop]))
                found.ours_to_peer.add(theirs, ours)
                found.reference_to_peer.add(theirs, truth)
            start = stop
    return found
