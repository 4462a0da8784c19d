"""By how much queries are turned for each leaf, on top of the rotation that its keys carry."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from edgekv_kernels.rope import Style


@dataclass(frozen=True, slots=True, eq=False)
class Turns:
    """Leaf or column i takes row `of[i]` (int32 [n]) of `rows`, float32 [m, R], R <= D: R/2 cosines, R/2 sines.

    Pairs of dimensions as in `rope_`.
    Few rows serve many leaves: of a row for each, no cache held the table, and scoring scattered columns of 100,000
    tokens took 1.6 times as long.
    """

    rows: torch.Tensor
    of: torch.Tensor
    style: Style = "split"

    @classmethod
    def each(cls, rows: torch.Tensor, style: Style = "split") -> Turns:
        """A row of its own for every leaf."""
        return cls(rows, torch.arange(len(rows), dtype=torch.int32, device=rows.device), style)

    def __len__(self) -> int:
        """Leaves."""
        return len(self.of)

    def at(self, leaves: torch.Tensor) -> Turns:
        """Those of the listed ones, integers [n]."""
        return Turns(self.rows, self.of.index_select(0, leaves), self.style)

    def to(self, device: torch.device) -> Turns:
        """The same on another device."""
        return Turns(self.rows.to(device), self.of.to(device), self.style)

    def native(self, dim: int) -> tuple[int, int, int, bool]:
        """Where the native forms find them: rows, their width, which is whose, whether pairs are neighbours."""
        assert self.rows.is_contiguous()
        assert self.of.is_contiguous()
        assert self.of.dtype is torch.int32, self.of.dtype
        assert self.rows.shape[1] <= dim, (self.rows.shape, dim)
        assert self.rows.shape[1] % 2 == 0, self.rows.shape
        return self.rows.data_ptr(), self.rows.shape[1], self.of.data_ptr(), self.style == "interleaved"


NOT_TURNED = (0, 0, 0, False)  # `native` where there are none


def spread(turns: Turns | None) -> tuple[torch.Tensor | None, Style]:
    """A row for each leaf, float32 [n, R], and the style, as the plain and the Triton forms take them."""
    return (None, "split") if turns is None else (turns.rows.index_select(0, turns.of), turns.style)
