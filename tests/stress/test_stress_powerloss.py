"""Power losses of the databases that cannot be rebuilt, from SQLite's own writes."""

import pytest


@pytest.mark.stress(ci=True)
@pytest.mark.timeout(0)
def test_power_losses_of_sqlite(campaign_size, run_campaign, seed):
    """Guards what was acknowledged: turns are there, forgotten keys stay gone, whatever a drive had not synced."""
    losses = campaign_size("--power-losses", ci=1500)
    report = run_campaign("stress_powerloss.py", "--power-losses", losses, "--seed", seed)
    assert report["violations"] == []
    assert report["power_losses"] == losses
    assert report["acknowledged_turns"] > 10


def test_the_campaign_notices_missing_syncs(run_campaign):
    """Guards the campaign itself: without SQLite's syncs it has to find lost turns."""
    report = run_campaign("stress_powerloss.py", "--power-losses", 1500, "--seed", 1, "--weakened")
    assert any("is lost" in line for line in report["violations"])
