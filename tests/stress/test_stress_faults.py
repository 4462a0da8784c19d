"""Drive errors in a whole generation: the n-th call on each file of the data directory fails."""

import pytest


def _broken(report, runs):
    assert report["runs"] >= runs
    assert report["injected"] == report["runs"], "every fault was met"
    assert report["silent"] > 0
    assert report["noticed"] > 0
    assert report["calls"]["/seg- 127"] > 5
    return report["violations"]


def test_some_failing_calls(run_campaign, seed):
    """Guards generation against drives: full, broken or cutting calls short, at a few places drawn at random."""
    report = run_campaign("stress_faults.py", "--runs", 20, "--seed", seed)
    assert _broken(report, 20) == []


@pytest.mark.stress
@pytest.mark.timeout(0)
def test_every_failing_call(run_campaign):
    """The same at every call there is, with each error, once and from then on."""
    assert _broken(run_campaign("stress_faults.py"), 1000) == []
