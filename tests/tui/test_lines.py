"""What is said in one line of an answer."""

import pytest

from edgekv import PrefillProgress, Result, Timings, Usage
from edgekv_tui.lines import detail_line, restored_line


def test_what_was_restored_is_numbers_alone():
    """Guards against reasons that nobody gave, and against counting an answer that is to be made again."""
    assert restored_line(PrefillProgress(96, 130, 96), 100, 0.1) == "96 of 100 tokens restored in 0.1 s"
    assert restored_line(PrefillProgress(0, 130, 0), 74, 0.0) == "0 of 74 tokens restored in 0.0 s"
    assert restored_line(PrefillProgress(48, 60, 48), 560, 1.0) == "48 of 60 tokens restored in 1.0 s"
    assert restored_line(PrefillProgress(112, 130, 112), 100, 1.0) == "100 of 100 tokens restored in 1.0 s"


@pytest.mark.parametrize(
    ("count", "reason", "told"),
    [
        (0, "cancelled", "[stopped before the first token; 16 of 100 reused]"),
        (0, "context", "[no token came; 16 of 100 reused]"),
        (1, "stop", "[exact; 1 token; first after 3.13 s; 16 of 100 reused]"),
        (12, "stop", "[exact; 12 tokens at 91.2/s; first after 3.13 s; 16 of 100 reused]"),
    ],
)
def test_without_a_token_there_is_no_speed_and_no_wait_for_it(count, reason, told):
    """Guards a stop while the message is read: "0 tokens at 0.0/s; first after 3.13 s", of a token never made."""
    result = Result("", (), reason, Usage(100, count, 16), Timings(3.13, 1000, 91.2))
    assert detail_line(result) == told
