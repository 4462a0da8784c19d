"""Selected attention of one pass: sink, window and, between them, the columns that a policy chooses per layer.

Beyond the model's trained window, far columns are attended at virtual positions within it, and columns that a
question names are attended anyway, by its pass and by its answer's tokens. Leaves that were
chosen and are not in the pool that is read are promoted first. Choosing takes place in host memory, also for a GPU.
Knows slots and columns; how they are ranked is the policy's.
"""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

import edgekv_kernels as kernels
from edgekv.cache.directory import ABSENT
from edgekv.cache.leaf import LEAF_TOKENS
from edgekv.engine.asking import asking, checked, checked_names
from edgekv.engine.attended import FullAttention
from edgekv.engine.budget import FEW_TOKENS, SINK_COLUMNS
from edgekv.engine.selected_pass import SelectedPass
from edgekv.engine.tally import AttentionTally
from edgekv.engine.weighing import KeptMass
from edgekv.events import AttentionUse
from edgekv.policies.selection.selector import Step

if TYPE_CHECKING:
    from collections.abc import Sequence as Ids

    from numpy.typing import NDArray

    from edgekv.cache.sequence import Sequence
    from edgekv.engine.budget import Budget, Budgets
    from edgekv.engine.positions import VirtualLayout
    from edgekv.models.decoder import Attend
    from edgekv.policies.selection.selector import Selector
    from edgekv.tiers.arrivals import Arrivals
    from edgekv.tiers.residency import Residency

PROMOTED_STEPS = 16  # leaves kept of so many steps' choices, if there is room: neighbours choose alike
SAMPLE_QUERIES = 32  # of a block, evenly spaced: they choose for all
SAMPLE_TIERS = 15  # decode passes between two whose leaves are counted by tier: they hardly differ
PERIOD_AWAY = 8  # tokens between two searches where leaves are away: most searches find one to be read
SCAN_AWAY = 256  # tokens between two scans of a layer there
AWAY_WEIGHT = 0.1  # of a leaf's mass, beside leaves that are in memory: a read has to be worth it
BESIDE_NAMED = 16  # columns that an answer's tokens choose beside what the question names
NO_COLUMNS = torch.empty(0, dtype=torch.int32)
NEAR_COLUMNS = 8  # of the window, weighed with those to choose from: 4 told as much as all


class SelectedAttention:
    """Makes the `attend` of passes that read a budget: `decode` for few tokens, `prefill` for blocks of many."""

    def __init__(
        self,
        residency: Residency,
        selector: Selector,
        layout: VirtualLayout,
        budgets: Budgets,
        scale: float,
    ) -> None:
        self.tally = AttentionTally()
        self._budgets = budgets
        self._residency = residency
        self._selector = selector
        self._layout = layout
        self._scale = scale
        self._owner: Sequence | None = None
        self._num_cuts = 0
        self._named: Tensor | None = None  # by the question that is being answered; None: not asked yet
        self._kept_mass = KeptMass()
        mover = residency.mover
        self._first_host = mover.host.first_slot if mover.in_place else mover.device.slots.num_slots
        self._whole: kernels.TokenPass | None = None  # while it runs
        self._last: tuple[kernels.TokenPass, int, int] | None = (
            None  # with the directory's version and the token
        )

    def take_use(self) -> AttentionUse:
        """What was attended since the last call."""
        tally, self.tally = self.tally, AttentionTally()
        self._layout.renew()  # a turn has its own, however it was come to
        self._named = None
        self._last = None  # it would hold on to abstracts that may be dropped now
        tally.count_leaves(self._first_host)
        leaf_bytes = self._residency.mover.host.shape.leaf_bytes
        num_on_device = round(tally.num_device_leaves)
        brought = self._residency.promotion.promoted.take_use()
        return AttentionUse(
            mean_tokens=tally.num_tokens / tally.num_steps if tally.num_steps else 0.0,
            mass_kept=self._kept_mass.take(),
            host_bytes_read=(tally.num_leaves - num_on_device) * leaf_bytes,
            device_bytes_read=num_on_device * leaf_bytes,
            disk_bytes_read=brought.num_read * leaf_bytes,
            promoted_bytes=brought.num_missed * leaf_bytes,
            prefetch_precision=brought.precision,
            prefetch_recall=brought.recall,
            most_read=tally.most_read(),
        )

    def window_columns(self, num_tokens: int) -> int:
        """Columns at the end of a context of `num_tokens` that every pass reads."""
        return self._budget(1, num_tokens).window_columns

    def worth_of(self, sequence: Sequence) -> NDArray[np.float32]:
        """Attention that the first columns of `sequence` have had, the sink's without end; empty where the method
        keeps no account of it.
        """
        worth = None
        with asking(self._selector):
            if sequence is self._owner and sequence.num_cuts == self._num_cuts:
                worth = self._selector.worth()
            scores = np.empty(0, np.float32) if worth is None else worth.numpy().astype(np.float32)
        scores[:SINK_COLUMNS] = np.inf
        return scores

    def most_tokens(self, num_tokens: int) -> int | None:
        """The most tokens of one pass that ends at `num_tokens`; None: any number."""
        return self._layout.block_tokens if self._layout.is_needed(num_tokens) else None

    def reads_all(self, start: int, count: int) -> bool:
        """Whether a pass over `count` tokens from `start` on attends to everything, at its true distance."""
        end = start + count
        return self._budget(count, end).reads_all(start) and not self._layout.is_needed(end)

    def _budget(self, count: int, end: int) -> Budget:
        return self._budgets.of_pass(count, is_far=self._layout.is_needed(end))

    def begin(self, sequence: Sequence, token_ids: Ids[int], arrivals: Arrivals) -> Attend:
        """`attend` for a pass over the next tokens of `sequence`; `end` when it is through.

        Raises:
            CapacityError: no room for the new leaves, their abstracts or what is selected.
            PolicyError: (also while the pass runs) the method of selection failed.
            DamagedColumns: (while the pass runs) leaves on disk turned out damaged.
        """
        last, self._last, self._whole = self._last, None, None
        count = len(token_ids)
        is_same = sequence is self._owner and sequence.num_cuts == self._num_cuts
        if not is_same:
            with asking(self._selector):
                self._selector.reset()
        self._owner, self._num_cuts = sequence, sequence.num_cuts
        if count > 1 or not is_same:
            self._layout.renew()
            self._named = None
        arrivals.wait_all()  # abstracts are made of what has landed
        if count == 1 and is_same and last is not None and self._goes_on(sequence, last):
            self._whole = last[0]
            return self._whole
        this = self._open(sequence, token_ids)
        if count == 1:
            self._whole = self._token_pass(this)
        weighed = range(0)
        if self._whole is None and count <= FEW_TOKENS and this.num_choices and not this.abstracts.num_absent:
            weighed = self._kept_mass.layers_to_weigh(sequence.directory.num_layers)
        return self._whole or partial(self._attend, this, self._full(this), weighed)

    def _goes_on(self, sequence: Sequence, last: tuple[kernels.TokenPass, int, int]) -> bool:
        """Make `last`, the pass of a token, the one of the next token if that is in the same column and nothing has
        moved since. Opening a pass anew takes a tenth of a token's time.
        """
        whole, version, token = last
        start, offset = sequence.num_tokens, sequence.num_tokens % LEAF_TOKENS
        promoted = self._residency.promotion.promoted
        if (sequence.directory.version, start - 1) != (version, token) or not offset:
            return False
        if not (promoted.serves(sequence) and promoted.is_current):
            return False
        promoted.go_on()
        whole.offset, whole.num_missing = offset, LEAF_TOKENS - 1 - offset
        whole.turns = self._layout.turns(start, start + 1, NO_COLUMNS if self._named is None else self._named)
        whole.phase = start
        return True

    def end(self) -> None:
        """Count what a pass of one token attended, and note that it was used."""
        whole, self._whole, owner = self._whole, None, self._owner
        if whole is None or owner is None:
            return
        self._last = whole, owner.directory.version, owner.num_tokens
        promoted, tally = self._residency.promotion.promoted, self.tally
        chosen, num_fixed = whole.counts.tolist(), whole.fixed.shape[0]  # torch's sum of these takes 0.08 ms
        num_layers = len(chosen)
        num_leaves = sum(chosen) + num_layers * num_fixed
        tally.num_steps += num_layers
        tally.num_tokens += num_leaves * LEAF_TOKENS - num_layers * whole.num_missing
        weighs = tally.waits == 0
        tally.waits = SAMPLE_TIERS if weighs else tally.waits - 1
        if weighs or promoted.is_partial:
            listed, counts = whole.listed.numpy(), whole.counts.numpy()[:, None]
            place = np.arange(listed.shape[1])  # chosen ones stand first
            attended = place < counts + num_fixed
            if promoted.is_partial:
                promoted.touch_all(listed, attended)
            if weighs:
                slots = np.take_along_axis(whole.where.numpy(), np.where(attended, listed, 0), axis=1)
                if whole.choosing is not None:
                    named = NO_COLUMNS if self._named is None else self._named
                    chosen_all = [listed[place < counts], np.tile(named.numpy(), num_layers)]
                    tally.note_chosen(np.concatenate(chosen_all), num_layers)
                found = slots[attended]  # one that gave way since counts as the host's
                on_device = (found != ABSENT) & (found < self._first_host)
                tally.device_share = float(on_device.sum() / num_leaves)
        tally.num_leaves += num_leaves
        tally.num_device_leaves += num_leaves * tally.device_share

    def _open(self, sequence: Sequence, token_ids: Ids[int]) -> SelectedPass:
        """Make room and abstracts, and find out what the pass attends to anyway."""
        start, count, residency = sequence.num_tokens, len(token_ids), self._residency
        tail, offset = start // LEAF_TOKENS, start % LEAF_TOKENS
        promotion = residency.promotion
        made = promotion.make_abstracts(sequence, tail)  # before room is made: columns may be on the device
        if count == 1 and self._selector.wants_keys and made is not None:
            made.ensure_all()  # before the pass: a key made of its leaf takes a slot
        residency.prepare(sequence, start + count, reads_all=False)
        budget = self._budget(count, start + count)
        at_least = budget.num_columns + 1
        num_slots = PROMOTED_STEPS * at_least * sequence.directory.num_layers
        abstracts = residency.select_from(sequence, tail, num_slots, at_least)
        self.tally.count_leaves(self._first_host)
        where = promotion.promoted.begin_pass(sequence)
        pool = promotion.promoted.tier.arena
        first_window = budget.first_window(start)
        in_tail = offset + 1 if count == 1 else offset  # tokens of the last column, 0 where it is whole
        fixed = self._fixed(start, first_window, with_tail=bool(in_tail))
        choice = range(SINK_COLUMNS, max(SINK_COLUMNS, first_window))
        num_choices = min(budget.num_choices, len(choice))
        named = self._names(sequence, token_ids, choice, num_choices)
        if len(named):
            num_choices = 0 if count > 1 else min(num_choices - len(named), BESIDE_NAMED)
        writes = np.ascontiguousarray(sequence.directory.device[:, tail:])
        return SelectedPass(
            sequence=sequence,
            count=count,
            abstracts=abstracts,
            where=where,
            pool=pool,
            written=residency.mover.device.pool,
            writes=torch.from_numpy(writes).to(pool.device),
            offset=offset,
            fixed=torch.cat([fixed[:SINK_COLUMNS], named, fixed[SINK_COLUMNS:]]),
            named=named,
            around=fixed[(fixed < tail) & ((fixed < SINK_COLUMNS) | (fixed >= tail - NEAR_COLUMNS))],
            choice=choice,
            num_choices=num_choices,
            at_once=budget.num_columns,
            num_missing=-in_tail % LEAF_TOKENS,
            turns=self._layout.turns(start, start + count, named, stays=count <= FEW_TOKENS),
        )

    def _token_pass(self, this: SelectedPass) -> kernels.TokenPass | None:
        """The pass of one token as a whole; None where the policy has to be asked layer by layer."""
        choosing = None
        if this.num_choices:
            with asking(self._selector):
                choosing = self._selector.choosing(this.abstracts, this.choice, this.num_choices, this.around)
            if choosing is None:
                return None
            if self._residency.promotion.promoted.is_partial:
                choosing = replace(
                    choosing,
                    period=max(choosing.period, PERIOD_AWAY),
                    scan_period=max(choosing.scan_period, SCAN_AWAY),
                    away=AWAY_WEIGHT,
                )
        return kernels.TokenPass(
            pool=this.pool,
            where=this.where,
            written=this.written,
            writes=this.writes,
            offset=this.offset,
            fixed=this.fixed,
            num_missing=this.num_missing,
            scale=self._scale,
            turns=this.turns,
            choosing=choosing,
            reach=self._reach,
            phase=this.sequence.num_tokens,
            measured=self._kept_mass.measured,
        )

    def _attend(
        self,
        this: SelectedPass,
        full: FullAttention | None,
        weighed: range,
        layer: int,
        q: Tensor,
        k: Tensor,
        v: Tensor,
    ) -> Tensor:
        """One layer, the policy being asked. Of the layers `weighed` the kept mass is measured in any case."""
        kernels.append_kv(this.written, this.writes[layer], this.offset, k, v)
        listed = this.fixed
        if this.num_choices:
            listed = self._choose(this, full, weighed, layer, q)
        if this.count <= FEW_TOKENS and (this.num_choices or len(this.named)):
            chosen = listed[: len(listed) - len(this.fixed)]
            self.tally.note_chosen(torch.cat([chosen, this.named]).numpy(), 1)
        slots, turned = self._placed(this, layer, listed)
        num_tokens = len(listed) * LEAF_TOKENS - this.num_missing
        self.tally.num_steps += 1
        self.tally.num_tokens += num_tokens
        self.tally.slots.append(slots)
        pool, scale = this.pool, self._scale
        if this.count == 1:
            return kernels.attend_leaves(q, pool, slots, num_tokens, scale, turns=turned)[0]
        out, lse = kernels.attend_block(q, k, v, scale)
        if num_tokens:
            part = kernels.attend_leaves(q, pool, slots, num_tokens, scale, turns=turned)
            kernels.merge_(out, lse, *part)
        return out

    def _choose(
        self, this: SelectedPass, full: FullAttention | None, weighed: range, layer: int, q: Tensor
    ) -> Tensor:
        """The columns one layer attends to: chosen ones, then the fixed ones."""
        every = -(-this.count // SAMPLE_QUERIES)
        sample = q[(this.count - 1) % every :: every]  # the last is what a prompt's first token follows
        out = torch.empty(this.num_choices, dtype=torch.int32)
        step = Step(
            layer=layer,
            q=sample.cpu(),
            scale=self._scale,
            columns=this.choice,
            num_columns=this.num_choices,
            abstracts=this.abstracts,
            out=out,
            turns=this.turns,
            token_ids=this.sequence.token_ids,
            attended=None if full is None else partial(full.of, layer, sample),
            around=this.around,
            is_block=this.count > FEW_TOKENS,
        )
        with asking(self._selector):
            num_chosen = checked(self._selector.select(step), step)
        if this.count <= FEW_TOKENS and (step.ranked or layer in weighed):
            mass = step.ranked[0] if step.ranked else step.mass(step.q[-1:]) / q.shape[1]
            kept = torch.cat([out[:num_chosen], this.named]).unique()
            self._kept_mass.note(mass, kept.long() - this.choice.start)
        chosen = out[:num_chosen]
        return torch.cat([chosen[~torch.isin(chosen, this.named)], this.fixed])

    def _full(self, this: SelectedPass) -> FullAttention | None:
        """For policies that look at all leaves."""
        if not (self._selector.needs_attended and this.num_choices):
            return None
        return FullAttention(
            placed=partial(self._placed, this),
            pool=this.pool,
            free=torch.arange(this.choice.start, this.choice.stop, dtype=torch.int32),
            fixed=this.fixed,
            num_missing=this.num_missing,
            at_once=this.at_once,
            scale=self._scale,
        )

    def _placed(self, this: SelectedPass, layer: int, columns: Tensor) -> tuple[Tensor, kernels.Turns | None]:
        """Slots of `columns`, after bringing up those that are away, and their turns; both where the pool is."""
        promoted = self._residency.promotion.promoted
        if promoted.is_partial:
            self._reach(layer, columns)
        slots = this.where[layer].index_select(0, columns).to(this.pool.device)
        if this.turns is None:
            return slots, None
        return slots, this.turns.at(columns).to(this.pool.device)

    def _reach(self, layer: int, columns: Tensor) -> None:
        """Bring up those of `columns` that are away."""
        promoted = self._residency.promotion.promoted
        chosen = columns.numpy()
        promoted.touch(layer, chosen)
        away = chosen[promoted.where[layer, chosen] == ABSENT]
        if len(away):
            promoted.bring(layer, away)

    def _names(self, sequence: Sequence, token_ids: Ids[int], choice: range, most: int) -> Tensor:
        """Which of `choice` the question that these tokens end names, half of so many at most; also while it is
        answered. None where as many as there are can be read.
        """
        if self._named is None:
            self._named, start, count = NO_COLUMNS, sequence.num_tokens, len(token_ids)
            if count <= FEW_TOKENS and self._layout.is_needed(start + count) and len(choice) > most:
                with asking(self._selector):
                    found = self._selector.named(sequence.token_ids, token_ids, choice, most // 2)
                    self._named = checked_names(found, choice, most // 2, self._selector)
        return self._named

    def _fixed(self, start: int, first_window: int, *, with_tail: bool) -> Tensor:
        """Sink and window of a pass that begins at token `start`, the unfinished column last."""
        tail = start // LEAF_TOKENS
        stop = tail + 1 if with_tail else tail
        sink = torch.arange(min(SINK_COLUMNS, first_window, stop), dtype=torch.int32)
        return torch.cat([sink, torch.arange(min(first_window, stop), stop, dtype=torch.int32)])
