"""What every method of selection gets and gives.

A step is one layer of one pass: a decode token, or a prefill block whose queries share their choice. Sink and
window are attended anyway; a method chooses among the columns between them. It knows abstracts and queries,
no KV, no tiers and no slots.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, ClassVar, Protocol

import numpy as np
import torch

import edgekv_kernels as kernels

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from numpy.typing import NDArray
    from torch import Tensor


class AbstractsLike(Protocol):
    """Abstracts of one sequence, one row per column or node, on the CPU."""

    def keys(self, layer: int) -> Tensor:
        """Low-bit keys uint8 `[num_columns, key_bytes]`."""
        ...

    @property
    def num_absent(self) -> int:
        """Keys that are still on disk; 0: all that `keys` gives are there."""
        ...

    @property
    def all_keys(self) -> Tensor:
        """`keys` of all layers, uint8 `[num_layers, num_columns, key_bytes]`, rows of a layer contiguous."""
        ...

    @property
    def all_nodes(self) -> Tensor:
        """`nodes` of all layers, uint8 `[num_layers, num_columns // 8, node_bytes]`, rows of a layer contiguous."""
        ...

    def ensure(self, layer: int, columns: NDArray[np.integer]) -> None:
        """Bring the keys of `columns` from disk where they are not here."""
        ...

    def nodes(self, layer: int) -> Tensor:
        """Minimum, maximum and mean of 8 columns each, uint8 `[num_columns // 8, node_bytes]`."""
        ...


@dataclass(frozen=True, slots=True)
class Step:
    """One layer of one pass over one sequence.

    q: float32 `[T, Hq, D]` on the CPU, rotated at its positions; a block hands in a sample of its queries. The
    choice is among `columns`; at most `num_columns` of them, written to `out` int32 `[>= num_columns]`.
    around: int32 `[m]`, columns that are attended anyway and have abstracts, the sink and the nearest: what a head
    gives to them it does not ask of `columns`, so they belong into the softmax of every estimate.
    turns: of the query for each column, None where every distance is within the trained window. token_ids: of
    everything before the pass.
    attended: reads every leaf and gives the attention that each of `columns` gets under full attention, float32
    `[len(columns)]`, summed over queries and heads; only for methods whose `needs_attended` is set. is_block: a
    block of a long prompt, of which there are many: work that grows with the conversation makes them quadratic.
    """

    layer: int
    q: Tensor
    scale: float
    columns: range
    num_columns: int
    abstracts: AbstractsLike
    out: Tensor
    turns: kernels.Turns | None = None
    token_ids: Sequence[int] = ()
    attended: Callable[[], Tensor] | None = None
    around: Tensor = field(default_factory=lambda: torch.empty(0, dtype=torch.int32))
    is_block: bool = False
    ranked: list[Tensor] = field(default_factory=list)
    """Left by a method that weighed all `columns` with the step's queries: the share of attention that each gets,
    float32 `[len(columns)]`. The mass kept is told by it."""

    def mass(self, q: Tensor, columns: Tensor | None = None) -> Tensor:
        """Attention estimated from low-bit keys, brought from disk where they are not here: float32 `[n]`.

        Of queries `q` (like the step's) to some of the step's `columns` (int32, ascending; None: to all).
        """
        first, last = self.columns.start, self.columns.stop
        if self.abstracts.num_absent:
            wanted = torch.arange(first, last) if columns is None else columns
            self.abstracts.ensure(self.layer, torch.cat([wanted, self.around]).numpy())
        keys = self.abstracts.keys(self.layer)
        return kernels.score_among(q, keys, columns, self.around, first, last, self.scale, self.turns)

    def every_key(self) -> Tensor:
        """Low-bit keys of the layer, those of all `columns` brought from disk."""
        if self.abstracts.num_absent:
            self.abstracts.ensure(self.layer, np.arange(self.columns.start, self.columns.stop))
        return self.abstracts.keys(self.layer)

    def keep_best(self, scores: Tensor) -> int:
        """Write those of `columns` with the largest scores, float `[len(columns)]`, ascending; how many."""
        count = min(self.num_columns, len(self.columns))
        self.out[:count] = scores.topk(count).indices.sort().values + self.columns.start
        return count


class Selector(Protocol):
    """One method; one instance serves one sequence at a time and may remember its earlier steps."""

    needs_attended: ClassVar[bool] = False
    wants_keys: ClassVar[bool] = False
    """Whether the pass of a single token shall find all low-bit keys in memory."""

    def select(self, step: Step) -> int:
        """Write the columns to attend to `step.out`, each once; how many, at most `step.num_columns`."""
        ...

    def choosing(
        self,
        abstracts: AbstractsLike,  # noqa: ARG002 - for those that do
        columns: range,  # noqa: ARG002
        num_columns: int,  # noqa: ARG002
        around: Tensor,  # noqa: ARG002
    ) -> kernels.Choosing | None:
        """Methods that `kernels.Choosing` can carry out say with what, for the tokens of one column: decode passes
        choose without returning to Python in every layer. None: `select` is asked.
        """
        return None

    def named(
        self,
        token_ids: Sequence[int],  # noqa: ARG002 - for those that do
        asked: Sequence[int],  # noqa: ARG002
        columns: range,  # noqa: ARG002
        num_columns: int,  # noqa: ARG002
    ) -> Tensor:
        """Methods that go by words as well: at most `num_columns` of `columns` that a question `asked` behind
        `token_ids` names, int32, ascending. Its pass reads them and nothing else beside sink and window, so
        `select` is not asked; the tokens of its answer read them beside what `select` gives. Only beyond the
        trained window, where there is no exact attention to come near to, and where not everything can be read.
        """
        return torch.empty(0, dtype=torch.int32)

    def worth(self) -> Tensor | None:
        """Attention that each column has had so far, float32 `[num_columns]`, of methods that keep account: what is
        worth least leaves a tier first.
        """
        return None

    def reset(self) -> None:
        """Forget earlier steps: another sequence, or columns were cut off."""
        ...
