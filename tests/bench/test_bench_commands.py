"""Every command on a tiny model: what it prints, and that it leaves nothing behind."""

import pytest

from edgekv.bench import decode, machine
from edgekv.bench.text import has_bindings
from edgekv.errors import ModelLoadError
from edgekv.runtime import Runtime

needs_peer = pytest.mark.skipif(not has_bindings(), reason="llama-cpp-python is not installed")


def rows_by_metric(report):
    keys = [(row["metric"], row["context"], row["text"]) for row in report["rows"]]
    assert len(keys) == len(set(keys)), "a metric with its labels is unique"
    return {row["metric"]: row for row in report["rows"]}


@needs_peer
def test_prefill_runs_both_programs_at_each_context(bench):
    """The peer's column was once filled only for the first context."""
    code, report = bench(
        "prefill", "--context", "64", "--context", "96", "--runs", "2", "--peer", "llama.cpp"
    )
    assert code == 0
    assert report["command"] == "bench prefill"
    assert [(r["metric"], r["context"]) for r in report["rows"]] == [
        (metric, context) for context in (64, 96) for metric in ("prefill_tokens_per_s", "prefill_seconds")
    ]
    for row in report["rows"]:
        assert row["runs"] == 2
        assert row["ours"] > 0
        assert row["peer"] > 0
    rate, seconds = report["rows"][:2]
    assert rate["ratio"] == pytest.approx(rate["ours"] / rate["peer"])
    assert seconds["ratio"] == pytest.approx(seconds["peer"] / seconds["ours"])
    assert report["machine"]["memory_read_gb_per_s"] > 0
    assert "flash attention on" in report["machine"]["peer"]


def test_decode_without_a_peer_has_no_ratio(bench, monkeypatch):
    """A missing peer must not become a ratio of 1 or an error. Memory of before a run is not its floor."""
    rates = iter([50e9, 2e9])  # at the start; right before the run
    monkeypatch.setattr(machine, "memory_read_rate", lambda: next(rates))
    monkeypatch.setattr(decode, "memory_read_rate", lambda: next(rates))
    monkeypatch.setattr(decode, "decode_floor", lambda _, now, *__: 1e-5 / now["memory_read_gb_per_s"])
    code, report = bench("decode", "--context", "64", "--runs", "1")
    rows = rows_by_metric(report)
    assert code == 0
    assert rows["decode_tokens_per_s"]["peer"] is None
    assert rows["decode_tokens_per_s"]["ratio"] is None
    assert (report["machine"]["memory_read_gb_per_s"], rows["memory_read"]["ours"]) == (50.0, 2e9)
    assert rows["eta_decode"]["ours"] == pytest.approx(rows["decode_tokens_per_s"]["ours"] * 1e-5 / 2)
    assert "peer" not in report["machine"]


@needs_peer
@pytest.mark.usefixtures("children_in_process")
def test_resume_reuses_all_that_was_stored_in_every_run(bench, data_dir):
    """Each run stores its own turn: a second run that found it would measure another thing."""
    options = ["--runs", "3", "--cold-runs", "1", "--peer", "llama.cpp"]
    code, report = bench("resume", "--context", "256", *options)
    rows = rows_by_metric(report)
    assert code == 0
    assert rows["reused_tokens"]["ours"] == 256
    assert rows["reused_tokens"]["ratio"] == 1.0
    assert rows["resume_bytes_read"]["ours"] == 256 * 2 * 2 * 2 * 64 * 2  # layers, k and v, heads, dim, bf16
    assert rows["resume_ttft_s"]["peer"] == rows["cold_ttft_s"]["peer"]
    assert rows["peer_restore_ttft_s"]["peer"] > 0
    assert rows["peer_state_bytes"]["peer"] > 0
    assert rows["resume_gain"]["ours"] == pytest.approx(
        rows["cold_ttft_s"]["ours"] / rows["resume_ttft_s"]["ours"]
    )
    assert list(data_dir.iterdir()) == [], "the stored conversation and the peer's state are gone"


@pytest.mark.usefixtures("children_in_process")
def test_resume_without_a_tokenizer_says_that_the_engine_ran_alone(bench, monkeypatch):
    """Figures of the engine alone must not pass for those of a whole Runtime."""

    def missing():
        raise ModelLoadError("llama-cpp-python is not installed")

    monkeypatch.setattr("edgekv.models.llama_vocab.load_bindings", missing)
    code, report = bench("resume", "--context", "64", "--runs", "1", "--cold-runs", "1")
    assert code == 0
    assert {row["text"] for row in report["rows"]} == {"random ids, engine alone (no tokenizer)"}
    assert rows_by_metric(report)["reused_tokens"]["ours"] == 64


@needs_peer
@pytest.mark.usefixtures("children_in_process")
def test_resume_asks_a_runtime_for_a_conversation(bench, monkeypatch):
    """An engine given ids leaves out the transcript, the template, the tokenizer and the queue."""
    asked = []
    real = Runtime.conversation

    def conversation(self, name=None, **options):
        asked.append((name, options.get("private", False)))
        return real(self, name, **options)

    monkeypatch.setattr(Runtime, "conversation", conversation)
    code, report = bench("resume", "--context", "250", "--runs", "2", "--cold-runs", "1")
    assert code == 0
    assert asked == [("bench", False)] + [(None, True), ("bench", False)] * 5  # warm-up, 2 cold, 2 warm
    reused = rows_by_metric(report)["reused_tokens"]["ours"]
    assert 250 - 15 <= reused <= 250 + 15, "the leaf that the new turn begins in may be an earlier run's"


@pytest.mark.usefixtures("children_in_process")
def test_tiers_agree_and_stay_within_their_limits(bench, data_dir):
    """Streaming from disk gave other answers than the pool, or a pool grew past its limit."""
    limits = ["--device-budget", "256KiB", "--host-budget", "64KiB"]
    code, report = bench("tiers", "--context", "500", "--steps", "12", *limits)
    rows = rows_by_metric(report)
    assert code == 0
    for suffix in ("", "_from_scratch"):
        agreement = rows["argmax_agreement" + suffix]
        assert agreement["ours"] + rows["argmax_excused" + suffix]["ours"] == agreement["peer"] == 12
        assert rows["logits_max_difference" + suffix]["ours"] < 0.05
        for tier in ("device", "host", "disk"):
            assert 0 < rows[f"budget_honesty_{tier}{suffix}"]["ours"] <= 1.0
    assert rows["reused_tokens"]["ours"] == 496
    assert rows["reused_tokens_from_scratch"]["ours"] == 0
    assert rows["process_memory_bytes"]["ours"] > 0
    assert list(data_dir.iterdir()) == []


def test_writes_count_footers_and_match_the_files(bench):
    """Bytes taken before the store was closed left the footers out."""
    code, report = bench("writes", "--turns", "4", "--long-tokens", "3000")
    assert code == 0
    made_up = [row for row in report["rows"] if row["text"] == "made-up leaves"]
    for part in (made_up, [row for row in report["rows"] if row not in made_up]):
        rows = rows_by_metric({"rows": part})
        assert rows["segment_bytes_written"]["ours"] == rows["segment_file_bytes"]["ours"]
        needed = rows["leaf_bytes"]["ours"] + rows["index_bytes"]["ours"]
        assert rows["write_amplification"]["ours"] == rows["segment_bytes_written"]["ours"] / needed
        assert rows["write_amplification"]["ours"] > 1
    assert {(row["context"], row["encrypted"]) for row in made_up} == {(3000, True)}
    assert rows_by_metric({"rows": made_up})["index_bytes"]["ours"] > 0


def test_encryption_is_compared_with_a_plain_store_row_by_row(bench, data_dir):
    """A ratio above its meaning: seconds of processor time are better when smaller, rates when larger."""
    code, report = bench("encryption", "--context", "768", "--runs", "2")
    assert code == 0
    rows = {(row["metric"], row["size"]): row for row in report["rows"]}
    assert len(rows) == 6
    for (metric, _), row in rows.items():
        better = row["ours"] / row["peer"] if metric.endswith("per_s") else row["peer"] / row["ours"]
        assert row["ratio"] == pytest.approx(better)
        assert (row["encrypted"], row["runs"]) == (True, 2)
    assert list(data_dir.iterdir()) == []


def test_writes_under_a_limit_keep_it(bench):
    """Guards the disk limit and wear when many conversations share too little room."""
    code, report = bench("writes", "--turns", "2")
    row = next(r for r in report["rows"] if r["metric"] == "disk_peak_of_limit")
    assert code == 0
    assert 0.5 < row["ours"] <= 1.0


def test_open_finds_the_same_store_after_a_close_and_a_kill(bench):
    """A killed process must leave its gigabyte behind, or the clean opening would be measured twice."""
    code, report = bench("open", "--size", str(300 << 20), "--runs", "1")
    rows = rows_by_metric(report)
    assert code == 0
    assert rows["store_open_s"]["ours"] > 0
    assert rows["store_open_after_kill_s"]["ours"] > 0
    assert rows["store_bytes"]["ours"] > 1 << 30


@needs_peer
def test_fidelity_is_close_to_the_reference_and_to_the_peer(bench):
    """An off-by-one between the two programs' positions shows as a KL of nats, not thousandths."""
    code, report = bench("fidelity", "--positions", "600")
    rows = rows_by_metric(report)
    assert code == 0
    assert rows["kl_nats_reference"]["ours"] < 0.001
    assert rows["kl_nats"]["ours"] < 0.01
    assert rows["top1_agreement_reference"]["ours"] > 0.95
    assert rows["top1_agreement"]["peer"] > 0.95


def test_speed_is_measured_without_a_tokenizer(bench, monkeypatch):
    """A GPU machine has no compiled tokenizer; the commands failed there for want of a text."""

    def missing():
        raise ModelLoadError("llama-cpp-python is not installed")

    monkeypatch.setattr("edgekv.models.llama_vocab.load_bindings", missing)
    code, report = bench("prefill", "--context", "64", "--runs", "1")
    assert code == 0
    assert {row["text"] for row in report["rows"]} == {"random ids"}


def test_without_json_a_table_is_printed(tiny_model, data_dir, capsys):
    """The same figures for a person."""
    from edgekv.cli.main import _run

    command = ["bench", "decode", "--context", "32", "--runs", "1"]
    assert _run([*command, "--model", str(tiny_model), "--data-dir", str(data_dir)]) == 0
    assert "decode_tokens_per_s  32" in capsys.readouterr().out
