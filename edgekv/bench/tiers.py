"""`bench tiers`: a conversation that outgrows memory gives the answers of one that does not, within its limits.

Logits of teacher-forced steps with everything in the device pool, against those of a fresh process with small
limits: once from the stored conversation, once with the whole conversation computed under the limits.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from edgekv.bench.child import run_child
from edgekv.bench.setting import generate
from edgekv.bench.steps import forced_steps

if TYPE_CHECKING:
    from pathlib import Path

    from numpy.typing import NDArray

    from edgekv.bench.child_speech import Answer
    from edgekv.bench.report import Labels, Row
    from edgekv.bench.setting import Setting
    from edgekv.config import Config

CONTEXT = 7500
STEPS = 200
DEVICE_BYTES = 8 << 20
HOST_BYTES = 32 << 20
EXCUSED_GAP = 0.02
ALLOWANCE_BYTES = 300 << 20  # the interpreter, torch and working memory


@dataclass(frozen=True, slots=True)
class Agreement:
    """How two rows of logits compare, step by step. `excused` differ where the reference nearly ties."""

    steps: int
    equal: int
    excused: int
    max_difference: float


def compare(want: NDArray[np.float32], got: NDArray[np.float32]) -> Agreement:
    """`want` and `got` are `[steps, vocab]`."""
    best, chosen = want.argmax(-1), got.argmax(-1)
    index = np.arange(len(want))
    differs = best != chosen
    gap = want[index, best] - want[index, chosen]
    return Agreement(
        steps=len(want),
        equal=int((~differs).sum()),
        excused=int((differs & (gap <= EXCUSED_GAP)).sum()),
        max_difference=float(np.abs(want - got).max()),
    )


def measure(setting: Setting, limits: Config, context: int, steps: int) -> list[Row]:
    """Rows of both ways under `limits`."""
    setting.check_room(context + steps)
    ids = setting.text.take(context + steps)
    cached, forced = ids[:context], ids[context:]
    labels, rows = setting.labels(context), []
    with setting.scratch() as folder:
        want = _reference(setting, cached, forced, folder / "stored")
        for suffix, store in (("", folder / "stored"), ("_from_scratch", folder / "computed")):
            logits = folder / "logits"
            answer = run_child(
                "steps",
                limits,
                setting.model_path,
                store=str(store),
                ids=cached,
                forced=forced,
                logits=str(logits),
            )
            got = np.fromfile(logits, np.float32).reshape(want.shape)
            rows += _agreement_rows(labels, suffix, compare(want, got), answer)
            rows += _limit_rows(setting, labels, suffix, limits, answer)
    return rows


def _reference(setting: Setting, cached: list[int], forced: list[int], store: Path) -> NDArray[np.float32]:
    """Logits with everything in the device pool; the cached part is left in `store`."""
    config = setting.roomy(len(cached) + len(forced))
    with setting.engine(config, store) as engine:
        generate(engine, cached, durable=True)
    with setting.engine(config) as engine:
        generate(engine, cached)
        return np.stack([logits.cpu().numpy() for logits in forced_steps(engine, forced)])


def _agreement_rows(labels: Labels, suffix: str, found: Agreement, answer: Answer) -> list[Row]:
    return [
        labels.row(
            "argmax_agreement" + suffix,
            "steps",
            ours=found.equal,
            peer=found.steps,
            ratio=found.equal / found.steps,
        ),
        labels.row("argmax_excused" + suffix, "steps", ours=found.excused),
        labels.row("logits_max_difference" + suffix, "logits", ours=found.max_difference),
        labels.row("reused_tokens" + suffix, "tokens", ours=answer.reused_tokens),
    ]


def _limit_rows(setting: Setting, labels: Labels, suffix: str, limits: Config, answer: Answer) -> list[Row]:
    assert limits.device_budget is not None
    pairs = (
        ("device", answer.device_peak_bytes, limits.device_budget),
        ("host", answer.host_peak_bytes, limits.host_budget),
        ("disk", answer.disk_peak_bytes, limits.disk_budget),
    )
    rows = [
        labels.row(
            f"budget_honesty_{tier}{suffix}",
            "peak/limit",
            ours=peak / limit,
            ratio=limit / peak if peak else None,
        )
        for tier, peak, limit in pairs
        if limit
    ]
    on_cpu = setting.device.type == "cpu"
    kept = answer.weights_bytes + limits.device_budget if on_cpu else 0
    allowed = kept + limits.host_budget + ALLOWANCE_BYTES
    used = answer.process_peak_bytes + (
        0 if on_cpu else limits.host_budget
    )  # pinned memory is not in RssAnon
    if answer.process_peak_bytes:
        rows += [
            labels.row("process_memory_bytes" + suffix, "bytes", ours=used, peer=allowed),
            labels.row(
                "process_memory_ratio" + suffix, "used/allowed", ours=used / allowed, ratio=allowed / used
            ),
            labels.row("process_memory_loading_bytes" + suffix, "bytes", ours=answer.load_peak_bytes),
        ]
    return rows
