"""What several tests of the engine want."""

import pytest

from edgekv.engine import selected


@pytest.fixture(scope="module")
def alike():
    """A leaf that is away counts as much as one in memory: then limits change no choice, hence no logits."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(selected, "AWAY_WEIGHT", 1.0)
        patch.setattr(selected, "PERIOD_AWAY", 1)
        yield
