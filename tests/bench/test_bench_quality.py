"""What `bench quality` calls distance, mass and score, on a tiny model."""

import json

import pytest

from edgekv.bench.needles import Item, Needle, load_items
from edgekv.bench.text import has_bindings
from edgekv.errors import ConfigError

needs_tokenizer = pytest.mark.skipif(not has_bindings(), reason="llama-cpp-python is not installed")


def by_key(report):
    rows = {(r["metric"], r["policy"], r["budget"], r["text"]): r for r in report["rows"]}
    assert len(rows) == len(report["rows"]), "a metric with its labels is unique"
    return rows


@pytest.fixture
def passage(tmp_path):
    path = tmp_path / "passage.txt"
    path.write_text("Some words of a text. And others, that follow? " * 120)
    return path


def test_distance_is_nothing_when_all_is_read_and_something_for_a_window(bench, passage):
    """Guards what is compared: two exact runs, or two contexts that differ, would show either everywhere."""
    where = ["--text", str(passage), "--context", "600", "--steps", "17", "--items", "0"]
    methods = ["--policy", "cascade", "--policy", "window", "--policy", "oracle"]
    code, report = bench("quality", *where, *methods, "--budget", "704")
    assert code == 0
    rows = by_key(report)
    name = next(iter(rows))[3]
    for policy in ("cascade", "window", "oracle"):
        everything = rows["kl_nats", policy, 704, name]
        assert everything["ours"] == 0.0
        assert rows["top1_agreement", policy, 704, name]["ours"] == 1.0
        assert rows["mass_kept", policy, 704, name]["ours"] == 1.0
        beside = rows["kl_nats", policy, 512, name]
        assert beside["ours"] > 0
        assert beside["attention"] == "selected"
        assert beside["context"] == 600
        assert 0 < rows["mass_kept", policy, 512, name]["ours"] < 1
    oracle = rows["kl_nats", "oracle", 512, name]
    assert oracle["ours"] == oracle["peer"] == rows["kl_nats", "window", 512, name]["peer"]
    kept = {
        policy: rows["mass_kept", policy, 512, name]["ours"] for policy in ("cascade", "window", "oracle")
    }
    assert kept["window"] < kept["cascade"] <= kept["oracle"] + 1e-6


def test_an_unknown_method_is_one_clear_error(bench):
    """Guards a misspelt method: it must not be measured as the default."""
    code, report = bench("quality", "--policy", "cascades", "--context", "100")
    assert code != 0
    assert "choose from cascade, leoam" in report["error"]["message"]


@needs_tokenizer
def test_only_what_exact_attention_solves_is_counted(bench, tmp_path):
    """Guards the share: an item that the model cannot do at all would count against the method."""
    items = [
        {
            "id": "never",
            "question": "What?",
            "answer_prefix": "It is",
            "answers": ["\u0001nothing"],
            "context": "a " * 300,
        },
        {
            "id": "always",
            "question": "What?",
            "answer_prefix": "It is",
            "answers": [""],
            "context": "a " * 300,
        },
    ]
    path = tmp_path / "items.jsonl"
    path.write_text("".join(json.dumps(item) + "\n" for item in items))
    code, report = bench(
        "quality", "--context", "100", "--steps", "2", "--needles", str(path), "--budget", "160"
    )
    assert code == 0
    (row,) = [row for row in report["rows"] if row["metric"] == "needle_solved"]
    assert (row["ours"], row["peer"], row["ratio"], row["runs"]) == (1, 1, 1.0, 2)
    assert (row["policy"], row["budget"]) == ("cascade", 160)


def test_bundled_needles_are_complete_and_others_are_checked(tmp_path):
    """Guards the items: an answer that no needle tells is never found; a file that is none is one error."""
    items = load_items(None, 99)
    assert len(items) == 10
    for item in items:
        assert all(isinstance(needle, Needle) and 0 <= needle.depth <= 1 for needle in item.needles)
        assert all(any(answer in needle.text for needle in item.needles) for answer in item.answers)
    with pytest.raises(ConfigError, match="needle items"):
        load_items(tmp_path / "none", 1)
    (tmp_path / "odd").write_text('{"id": 3}')
    with pytest.raises(ConfigError, match="needle items"):
        load_items(tmp_path / "odd", 1)
    assert isinstance(items[0], Item)
