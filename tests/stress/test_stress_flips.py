"""One bit flipped in any file of a data directory, closed or left by a kill."""

import pytest


@pytest.mark.stress(ci=True)
@pytest.mark.timeout(0)
def test_bit_flips(campaign_size, run_campaign, seed):
    """Guards every checksum and seal: no wrong leaf, no altered or silently lost turn, no crash."""
    flips = campaign_size("--bit-flips", ci=300)
    report = run_campaign("stress_flips.py", "--bit-flips", flips, "--seed", seed, needs_shim=False)
    assert report["violations"] == []
    assert report["flips"] == flips
    detected = {
        kind: sum(n for what, n in counts.items() if what != "harmless")
        for kind, counts in report["outcomes"].items()
    }
    assert all(detected[kind] > 0 for kind in ("seg-*.kv", "transcripts.db-wal", "meta.json", "master key"))
