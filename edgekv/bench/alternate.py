"""Two programs in turn, so that what else the machine does falls on both alike."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable


def alternate(
    runs: int, ours: Callable[[], float], peer: Callable[[], float] | None
) -> tuple[list[float], list[float]]:
    """Figures of `runs` runs each: ours, peer, ours, peer... Nothing is thrown away."""
    our_figures: list[float] = []
    peer_figures: list[float] = []
    for _ in range(runs):
        our_figures.append(ours())
        if peer is not None:
            peer_figures.append(peer())
    return our_figures, peer_figures
