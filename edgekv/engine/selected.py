"""Selected attention of one pass: sink, window and, between them, the columns that a policy chooses per layer.

Beyond the model's trained window, far columns are attended at virtual positions within it. Leaves that were
chosen and are not in memory are promoted first. Knows slots and columns; how they are ranked is the policy's.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

import edgekv_kernels as kernels
from edgekv.cache.directory import ABSENT
from edgekv.cache.leaf import LEAF_TOKENS
from edgekv.engine.attended import FullAttention
from edgekv.events import AttentionUse
from edgekv.policies.selection.selector import Step

if TYPE_CHECKING:
    from edgekv.cache.sequence import Sequence
    from edgekv.engine.positions import VirtualLayout
    from edgekv.models.decoder import Attend
    from edgekv.policies.selection.selector import Selector
    from edgekv.tiers.abstracts import Abstracts
    from edgekv.tiers.arrivals import Arrivals
    from edgekv.tiers.residency import Residency

SINK_COLUMNS = 1
PROMOTED_STEPS = 8  # leaves kept of so many steps' choices, if there is room: neighbouring steps choose alike
SAMPLE_QUERIES = 32  # of a block, evenly spaced: they choose for all
SAMPLE_PASSES = 64  # the mass that was kept is measured in one of so many decode passes
FEW_TOKENS = 64  # up to here a block reads what a single token would: a short message after a restart
MIN_WINDOW_COLUMNS = 4


@dataclass(frozen=True, slots=True)
class Budget:
    """Columns that one step reads: the sink, the window's, and those that are chosen."""

    num_columns: int
    window_columns: int

    @classmethod
    def of(cls, num_tokens: int, window_tokens: int) -> Budget:
        """Of `num_tokens` unique tokens, `window_tokens` of them (64 at least) for the window."""
        columns = max(SINK_COLUMNS + MIN_WINDOW_COLUMNS, num_tokens // LEAF_TOKENS)
        window = max(MIN_WINDOW_COLUMNS, window_tokens // LEAF_TOKENS)
        return cls(columns, min(columns - SINK_COLUMNS, window))

    @property
    def num_choices(self) -> int:
        """Columns that are chosen."""
        return self.num_columns - self.window_columns - SINK_COLUMNS

    def first_window(self, start: int) -> int:
        """The window's first column in a pass that begins at token `start`."""
        return max(SINK_COLUMNS, start // LEAF_TOKENS + 1 - self.window_columns)

    def reads_all(self, start: int) -> bool:
        """Whether everything before token `start` fits."""
        return self.first_window(start) - SINK_COLUMNS <= self.num_choices


@dataclass(slots=True)
class AttentionTally:
    """What the passes of one request attended: sums over layers and passes."""

    num_steps: int = 0
    num_tokens: int = 0
    mass: float = 0.0
    num_samples: int = 0
    num_leaves: int = 0
    num_device_leaves: int = 0
    slots: list[Tensor] = field(default_factory=list)  # of the pass that runs, a row per layer

    def count_leaves(self, first_host: int) -> None:
        """Count those of the pass before by where they lay: once a pass, a count per layer would take its time.

        Slots below `first_host` lie on the device.
        """
        if self.slots:
            slots = torch.cat(self.slots)
            self.num_leaves += len(slots)
            self.num_device_leaves += int((slots < first_host).sum())
            self.slots.clear()


class SelectedAttention:
    """Makes the `attend` of passes that read a budget: `decode` for few tokens, `prefill` for blocks of many."""

    def __init__(
        self,
        residency: Residency,
        selector: Selector,
        layout: VirtualLayout,
        decode: Budget,
        prefill: Budget,
        scale: float,
    ) -> None:
        self.tally = AttentionTally()
        self._decode = decode
        self._prefill = prefill
        self._residency = residency
        self._selector = selector
        self._layout = layout
        self._scale = scale
        self._style = layout.style
        self._owner: Sequence | None = None
        self._num_cuts = 0
        self._num_passes = 0
        mover = residency.mover
        self._first_host = mover.host.first_slot if mover.in_place else mover.device.slots.num_slots

    def take_use(self) -> AttentionUse:
        """What was attended since the last call."""
        tally, self.tally = self.tally, AttentionTally()
        tally.count_leaves(self._first_host)
        leaf_bytes = self._residency.mover.host.shape.leaf_bytes
        brought = self._residency.promotion.promoted.take_use()
        return AttentionUse(
            mean_tokens=tally.num_tokens / tally.num_steps if tally.num_steps else 0.0,
            mass_kept=tally.mass / tally.num_samples if tally.num_samples else None,
            host_bytes_read=(tally.num_leaves - tally.num_device_leaves) * leaf_bytes,
            device_bytes_read=tally.num_device_leaves * leaf_bytes,
            disk_bytes_read=brought.num_read * leaf_bytes,
            promoted_bytes=brought.num_missed * leaf_bytes,
        )

    @property
    def window_columns(self) -> int:
        """Columns at the end that every pass reads."""
        return self._decode.window_columns

    def reads_all(self, start: int, count: int) -> bool:
        """Whether a pass over `count` tokens from `start` on attends to everything, at its true distance."""
        return self._budget(count).reads_all(start) and not self._layout.is_needed(start + count)

    def _budget(self, count: int) -> Budget:
        return self._decode if count <= FEW_TOKENS else self._prefill

    def begin(self, sequence: Sequence, count: int, arrivals: Arrivals) -> Attend:
        """`attend` for a pass over the next `count` tokens of `sequence`.

        Raises:
            CapacityError: no room for the new leaves, their abstracts or what is selected.
            DamagedColumns: (while the pass runs) leaves on disk turned out damaged.
        """
        start = sequence.num_tokens
        tail, offset = start // LEAF_TOKENS, start % LEAF_TOKENS
        if sequence is not self._owner or sequence.num_cuts != self._num_cuts:
            self._selector.reset()
        self._owner, self._num_cuts = sequence, sequence.num_cuts
        residency = self._residency
        arrivals.wait_all()  # abstracts are made of what has landed
        residency.promotion.make_abstracts(
            sequence, tail
        )  # before room is made: columns may be on the device
        residency.prepare(sequence, start + count, reads_all=False)
        promoted = residency.promotion.promoted
        budget = self._budget(count)
        at_least = budget.num_columns + 1
        num_slots = PROMOTED_STEPS * at_least * sequence.directory.num_layers
        abstracts = residency.select_from(sequence, tail, num_slots, at_least)
        where = promoted.begin_pass(sequence)
        self.tally.count_leaves(self._first_host)
        pool = promoted.tier.arena
        turns = self._layout.turns(tail, start + count)
        first_window = budget.first_window(start)
        fixed = self._fixed(start, first_window, with_tail=bool(offset) or count == 1)
        num_choices = max(0, min(budget.num_choices, first_window - SINK_COLUMNS))
        samples = self._samples(count, abstracts)
        columns = torch.cat([torch.empty(num_choices, dtype=torch.int32), fixed])
        past = sequence.token_ids
        placed = num_choices  # where the fixed ones stand in `columns`
        in_tail = offset + (1 if count == 1 else 0)  # tokens of the last column, 0 where it is whole
        writes = torch.from_numpy(np.ascontiguousarray(sequence.directory.device[:, tail:])).to(pool.device)
        written, scale, style, tally = residency.mover.device.pool, self._scale, self._style, self.tally

        def slots_of(layer: int, listed: Tensor) -> Tensor:
            slots = where[layer].index_select(0, listed)
            return self._reach(layer, listed, slots) if promoted.is_partial else slots

        full = None
        if self._selector.needs_attended:
            free = torch.arange(SINK_COLUMNS, first_window, dtype=torch.int32)
            missing, at_once = -in_tail % LEAF_TOKENS, budget.num_columns
            full = FullAttention(slots_of, pool, free, fixed, missing, at_once, scale, turns, self._style)

        def attend(layer: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
            nonlocal placed
            arrivals.wait(layer)
            kernels.append_kv(written, writes[layer], offset, k, v)
            listed = fixed
            if num_choices:
                sample = q if count <= SAMPLE_QUERIES else q[:: -(-count // SAMPLE_QUERIES)]
                choice = range(SINK_COLUMNS, first_window)
                truth = None if full is None else partial(full.of, layer, sample)
                num_chosen = self._selector.select(
                    Step(
                        layer,
                        sample,
                        scale,
                        choice,
                        num_choices,
                        abstracts,
                        columns,
                        turns,
                        style,
                        past,
                        truth,
                    )
                )
                if num_chosen != placed:
                    columns[num_chosen : num_chosen + len(fixed)] = fixed
                    placed = num_chosen
                listed = columns[: num_chosen + len(fixed)]
                if samples:
                    self._weigh(
                        Step(layer, q, scale, range(tail), 0, abstracts, columns, turns, style), listed
                    )
            slots = slots_of(layer, listed)
            num_tokens = len(listed) * LEAF_TOKENS + (in_tail - LEAF_TOKENS if in_tail else 0)
            tally.num_steps += 1
            tally.num_tokens += num_tokens
            tally.slots.append(slots)
            turned = None if turns is None else turns.index_select(0, listed)
            if count == 1:
                return kernels.attend_leaves(q, pool, slots, num_tokens, scale, turns=turned, style=style)[0]
            out, lse = kernels.attend_block(q, k, v, scale)
            if num_tokens:
                part = kernels.attend_leaves(q, pool, slots, num_tokens, scale, turns=turned, style=style)
                kernels.merge_(out, lse, *part)
            return out

        return attend

    def _samples(self, count: int, abstracts: Abstracts) -> bool:
        """Whether this pass is one of those whose kept mass is measured: it costs a scan of all low-bit keys."""
        self._num_passes += count == 1
        return count == 1 and self._num_passes % SAMPLE_PASSES == 1 and abstracts.num_absent == 0

    def _weigh(self, step: Step, attended: Tensor) -> None:
        """Add the share of attention mass that falls on `attended`, by low-bit keys of every full column."""
        keys = step.abstracts.keys(step.layer)
        num_columns = len(step.columns)
        mass = kernels.score_leaves(
            step.q, keys, None, 0, num_columns, step.scale, turns=step.turns, style=step.style
        )
        kept = mass[attended[attended < num_columns].long()].sum() / mass.sum()
        self.tally.mass += float(kept)
        self.tally.num_samples += 1

    def _fixed(self, start: int, first_window: int, *, with_tail: bool) -> Tensor:
        """Sink and window of a pass that begins at token `start`, the unfinished column last."""
        tail = start // LEAF_TOKENS
        stop = tail + 1 if with_tail else tail
        sink = torch.arange(min(SINK_COLUMNS, first_window, stop), dtype=torch.int32)
        return torch.cat([sink, torch.arange(min(first_window, stop), stop, dtype=torch.int32)])

    def _reach(self, layer: int, columns: Tensor, slots: Tensor) -> Tensor:
        """Slots of all `columns`, after bringing up those that are away."""
        promoted = self._residency.promotion.promoted
        chosen = columns.numpy()
        away = chosen[slots.numpy() == ABSENT]
        promoted.touch(layer, chosen)
        if not len(away):
            return slots
        promoted.bring(layer, away)
        return torch.from_numpy(promoted.where[layer, chosen])
