"""With --json an error is one object too, and says what to do."""

import pytest

from edgekv.bench.child import run_child
from edgekv.bench.peer import check_peer
from edgekv.bench.text import load_text
from edgekv.config import Config
from edgekv.errors import ConfigError, EdgeKVError


@pytest.mark.parametrize(
    ("arguments", "kind", "hint"),
    [
        (["prefill", "--context", "64", "--context", "4096"], "ConfigError", "smaller --context"),
        (["decode", "--peer", "vllm"], "ConfigError", "the peer is llama.cpp"),
        (["prefill", "--text", "no/such/file"], "ConfigError", "cannot be read"),
        (["resume", "--contexts", "512"], "UsageError", "--context"),
        (["tiers", "--context", "64", "--steps", "4", "--device-budget", "many"], "ConfigError", "2GiB"),
    ],
)
def test_errors_are_one_object_and_an_exit_code(bench, arguments, kind, hint):
    """A traceback on stdout broke the scripts that read it."""
    code, report = bench(*arguments)
    assert code == 2
    assert list(report) == ["error"]
    assert report["error"]["type"] == kind
    assert hint in report["error"]["message"]


def test_a_missing_model_is_told_before_anything_is_measured(bench, tmp_path):
    """Seconds of measuring the machine came first."""
    code, report = bench("decode", model=tmp_path / "none.gguf")
    assert code == 1
    assert report["error"]["type"] == "ModelLoadError"


def test_a_short_text_says_so(bench, tmp_path):
    """It was silently repeated, which makes prediction easy and figures wrong."""
    (tmp_path / "short.txt").write_text("hello world")
    code, report = bench("prefill", "--context", "512", "--text", str(tmp_path / "short.txt"))
    assert code == 2
    assert "give a longer --text" in report["error"]["message"]


def test_a_failing_child_hands_its_error_up(tmp_path):
    """The parent reported a JSON error of its own instead of the child's line."""
    with pytest.raises(EdgeKVError, match=r"none\.gguf"):
        run_child("load", Config(), tmp_path / "none.gguf")


def test_only_known_peers(tiny_model):
    """A misspelt peer would have meant: no peer."""
    assert check_peer("llama.cpp")
    assert not check_peer(None)
    with pytest.raises(ConfigError):
        check_peer("llama-cpp")


def test_the_bundled_text_is_long_enough_for_every_default(tiny_model):
    """An excerpt that the wheel left out, or one cut too short, is noticed only by users."""
    text = load_text(tiny_model)
    assert text.name == "war_and_peace"
    assert len(text.take(8000)) == 8000
    assert len({tuple(turn[:16]) for turn in text.turns}) == len(text.turns), (
        "no run may reuse another's turn"
    )
