"""Cutting parallel index arrays into runs whose members are neighbours in each: one copy or read per run."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray


def common_runs(*indices: NDArray[np.integer]) -> list[tuple[int, int]]:
    """Half-open ranges over which every array counts up by one."""
    length = len(indices[0])
    if length == 0:
        return []
    broken = np.zeros(length - 1, dtype=np.bool_)
    for index in indices:
        broken |= np.diff(index) != 1
    cuts = (np.flatnonzero(broken) + 1).tolist()
    return list(zip([0, *cuts], [*cuts, length], strict=True))
