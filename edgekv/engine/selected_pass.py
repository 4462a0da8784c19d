"""What one pass under a budget found out before its first layer. Knows slots and columns; decides nothing."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor

    import edgekv_kernels as kernels
    from edgekv.cache.sequence import Sequence
    from edgekv.tiers.abstracts import Abstracts


@dataclass(frozen=True, slots=True)
class SelectedPass:
    """What all layers of one pass share.

    where: int32 `[num_layers, num_columns]`, slots in `pool` or ABSENT. writes: `[num_layers, n]`, slots in
    `written` of the columns from the first new token's on, which is the column's token `offset`. The last of the
    `fixed` columns lacks `num_missing` tokens; `named`: those of them that a question names; `around`: those that
    are weighed with what is chosen from. `at_once`: columns that may be promoted together. Pools and `writes` are
    on the device, the rest in host memory.
    """

    sequence: Sequence
    count: int
    abstracts: Abstracts
    where: Tensor
    pool: Tensor
    written: Tensor
    writes: Tensor
    offset: int
    fixed: Tensor
    named: Tensor
    around: Tensor
    choice: range
    num_choices: int
    at_once: int
    num_missing: int
    turns: kernels.Turns | None
