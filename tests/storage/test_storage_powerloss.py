"""Simulated power losses and failing calls: what the store may lose, and what it may never do."""

from __future__ import annotations

import powerloss


def test_power_losses():
    """Guards every order of writes: 300 losses at random points, unsynced sectors kept, lost and torn."""
    assert sum(powerloss.run(seed) for seed in range(300)) > 1000


def test_power_losses_of_a_lying_drive():
    """Guards the reader: a drive that only says it synced may cost leaves, but never serves a wrong one."""
    assert sum(powerloss.run(seed, lies=True) for seed in range(1000, 1060)) > 50
