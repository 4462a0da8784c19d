"""Every file of a data directory cut, made longer, zeroed, gone, exchanged and replaced, at every boundary +-1."""

import pytest


def _check(report, cases):
    assert report["violations"] == []
    assert report["flips"] >= cases
    outcomes = report["outcomes"]
    assert outcomes["seg-*.kv"]["recomputed"] > cases / 10
    assert outcomes["transcripts.db-wal"]["named"] > cases / 10
    assert outcomes["keys.db"]["refused"] > 0


def test_some_damaged_files(run_campaign, seed):
    """Guards against cut copies and drives that return zeros: no wrong leaf, no silent loss, no crash."""
    _check(run_campaign("stress_files.py", "--runs", 80, "--seed", seed, needs_shim=False), 80)


@pytest.mark.stress
@pytest.mark.timeout(0)
def test_every_damaged_file(run_campaign):
    """The same at every page boundary of every file, one byte before and behind it too."""
    _check(run_campaign("stress_files.py", needs_shim=False), 2000)
