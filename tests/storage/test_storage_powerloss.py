"""Simulated power losses and failing calls: what the store may lose, and what it may never do."""

from __future__ import annotations

import os
from concurrent.futures import ProcessPoolExecutor

import powerloss
import pytest

from edgekv_storage.store.leafjobs import LeafRun


def _run_many(seeds: range) -> int:
    return sum(map(powerloss.run, seeds))


@pytest.mark.stress(ci=True)
@pytest.mark.timeout(0)
def test_power_losses(campaign_size, pytestconfig):
    """Guards every order of writes: unsynced sectors kept, lost and torn; no wrong leaf, no nonce twice."""
    losses = campaign_size("--power-losses", ci=80)
    first = pytestconfig.getoption("--seed") * 1_000_000
    if losses <= 1000:
        found = _run_many(range(first, first + losses))
    else:
        parts = [range(at, min(first + losses, at + 500)) for at in range(first, first + losses, 500)]
        with ProcessPoolExecutor(os.cpu_count()) as pool:
            found = sum(pool.map(_run_many, parts))
    assert found > 10 * losses


def test_power_losses_of_a_lying_drive():
    """Guards the reader: a drive that only says it synced may cost leaves, but never serves a wrong one."""
    assert sum(powerloss.run(seed, lies=True) for seed in range(1000, 1030)) > 25


def test_the_simulation_finds_a_reader_that_believes(monkeypatch):
    """Guards the test itself: without verification, torn leaves of the same simulation are served."""
    monkeypatch.setattr(LeafRun, "faulty", lambda _: [])
    with pytest.raises(AssertionError, match="a wrong leaf was served"):
        _run_many(range(1_000_000, 1_000_200, 2))


@pytest.mark.stress(ci=True)
@pytest.mark.timeout(0)
def test_every_call_failing(campaign_size):
    """Guards every error path: any call failing with any error, once or for a while; the work goes on. In CI each
    call fails with some of the errors, its neighbours with the others."""
    is_small = campaign_size("--power-losses", ci=0) == 0
    steps = 14 if is_small else 80
    faults = powerloss.every_fault(powerloss.run_with_fault(3, None, steps=steps))
    assert len(faults) > 25 * steps
    faults = faults[::3] if is_small else faults
    for fault in faults:
        powerloss.run_with_fault(3, fault, steps=steps)
