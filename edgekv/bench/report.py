"""What a benchmark prints: rows of figures beside the limits of the machine, as one JSON object or a table.

Knows names, units and which direction is better; does not measure.
"""

from __future__ import annotations

import dataclasses
import statistics
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

Better = Literal["higher", "lower"]
Value = float | int


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """One figure. `metric` with the fields after `spread` is unique in a report; unused ones are None.

    `ratio` is better when larger, whatever the unit. `context` is in tokens, `budget` in tokens that
    attention may read, `size` in bytes, `spread` is (max - min) / median of our runs.
    """

    metric: str
    unit: str
    context: int | None = None
    ours: Value | None = None
    peer: Value | None = None
    ratio: float | None = None
    runs: int | None = None
    spread: float | None = None
    policy: str | None = None
    attention: str | None = None
    budget: int | None = None
    device: str | None = None
    backend: str | None = None
    size: int | None = None
    depth: int | None = None
    encrypted: bool | None = None
    text: str | None = None

    def share_of(self, base: Row, metric: str) -> Row:
        """A row that tells which share of `base`'s figure ours is: the same measure at another context."""
        assert base.ours, base.metric
        share = None if self.ours is None else self.ours / base.ours
        empty = dataclasses.replace(self, peer=None, ratio=None, runs=None, spread=None)
        return dataclasses.replace(empty, metric=metric, unit=f"of that at {base.context:,}", ours=share)


_ORDER = (
    *(
        "metric",
        "context",
        "ours",
        "peer",
        "ratio",
        "unit",
        "runs",
        "spread",
        "policy",
        "attention",
        "budget",
    ),
    *("device", "backend", "size", "depth", "encrypted", "text"),
)


@dataclass(frozen=True, slots=True)
class Labels:
    """What all rows of one command have in common."""

    context: int | None = None
    attention: str | None = "exact"
    device: str | None = None
    backend: str | None = None
    text: str | None = None
    policy: str | None = None
    budget: int | None = None

    def row(self, metric: str, unit: str, **values: Value | None) -> Row:
        """A row of figures that are not repeated runs."""
        return dataclasses.replace(self._empty(metric, unit), **values)  # type: ignore[arg-type]  # by field name

    def measured(
        self,
        metric: str,
        unit: str,
        ours: Sequence[float],
        peer: Sequence[float] = (),
        *,
        better: Better,
    ) -> Row:
        """A row of repeated runs: medians, their ratio, our spread."""
        median = statistics.median(ours)
        other = statistics.median(peer) if peer else None
        return dataclasses.replace(
            self._empty(metric, unit),
            ours=median,
            peer=other,
            ratio=ratio(median, other, better),
            runs=len(ours),
            spread=spread(ours),
        )

    def _empty(self, metric: str, unit: str) -> Row:
        return Row(
            metric=metric,
            unit=unit,
            context=self.context,
            attention=self.attention,
            device=self.device,
            backend=self.backend,
            text=self.text,
            policy=self.policy,
            budget=self.budget,
        )


@dataclass(frozen=True, slots=True)
class Report:
    """Everything one command found."""

    command: str
    version: str
    machine: Mapping[str, object]
    rows: Sequence[Row] = field(default_factory=tuple)

    def as_object(self) -> dict[str, object]:
        """The JSON object of `--json`."""
        return {
            "command": self.command,
            "version": self.version,
            "machine": dict(self.machine),
            "rows": [{name: getattr(row, name) for name in _ORDER} for row in self.rows],
        }

    def as_table(self) -> str:
        """The same for a person: columns that no row uses are left out."""
        machine = "\n".join(f"{name:<28} {_text(value)}" for name, value in self.machine.items())
        names = [name for name in _ORDER if any(getattr(row, name) is not None for row in self.rows)]
        cells = [names, *([_text(getattr(row, name)) for name in names] for row in self.rows)]
        widths = [max(len(line[index]) for line in cells) for index in range(len(names))]
        lines = [
            "  ".join(f"{cell:<{width}}" for cell, width in zip(line, widths, strict=True)) for line in cells
        ]
        return "\n".join([machine, "", *(line.rstrip() for line in lines)])


def ratio(ours: float, peer: float | None, better: Better) -> float | None:
    """How many times better ours is than the peer's; None without a peer or with a zero."""
    if peer is None or not ours or not peer:
        return None
    return ours / peer if better == "higher" else peer / ours


def spread(values: Sequence[float]) -> float | None:
    """(max - min) / median; None for a single value or a zero median."""
    median = statistics.median(values)
    return (max(values) - min(values)) / median if len(values) > 1 and median else None


def _text(value: object) -> str:
    if value is None:
        return ""
    if isinstance(value, float):
        return f"{value:,.3f}" if abs(value) < 100 else f"{value:,.0f}"
    if isinstance(value, int) and not isinstance(value, bool):
        return f"{value:,}"
    return str(value)
