"""kill -9 at random moments and at chosen system calls, of processes that do everything a store can do."""

import pytest


@pytest.mark.stress(ci=True)
@pytest.mark.timeout(0)
def test_kills(campaign_size, run_campaign, seed):
    """Guards the order of writes everywhere: no acknowledged turn lost, no wrong leaf, no nonce used twice."""
    kills = campaign_size("--kills", ci=40)
    report = run_campaign("stress_kills.py", "--kills", kills, "--seed", seed, needs_shim=False)
    assert report["violations"] == []
    assert report["kills"] == kills
    assert report["acknowledged_turns"] > kills / 4  # a busy machine gets less far before it is killed
    assert report["good_leaves"] > 10 * kills
    assert report["records"] > kills / 4
    if kills >= 1000:
        assert min(report["kills_in"][step] for step in ("open", "append", "turn", "compact", "leave")) > 10


def test_the_campaign_notices_what_is_acknowledged_too_early(run_campaign):
    """Guards the campaign itself: with every other commit put off it has to find lost turns."""
    report = run_campaign("stress_kills.py", "--kills", 12, "--seed", 1, "--weakened", needs_shim=False)
    assert any("is lost" in line for line in report["violations"])
