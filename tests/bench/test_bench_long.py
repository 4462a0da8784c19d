"""Commands for contexts beyond the trained window (1,024 tokens here), on a tiny model."""

import dataclasses
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from edgekv.bench import decode, filling, floor, soak
from edgekv.bench.floor import index_bytes_read
from edgekv.bench.inside import residency_of
from edgekv.bench.passkey import hidden_at
from edgekv.bench.peer import LlamaCpp
from edgekv.bench.setting import SEQUENCE, Setting, generate
from edgekv.bench.sliding import SlidingAttention
from edgekv.bench.text import Text, has_bindings
from edgekv.cache.directory import Directory
from edgekv.cache.sequence import Sequence
from edgekv.config import Config
from edgekv.tiers.arrivals import Arrivals
from edgekv_kernels.reference.turning import turned

needs_peer = pytest.mark.skipif(not has_bindings(), reason="llama-cpp-python is not installed")
SELECTED = ("--attention", "selected", "--budget", "128")


def figures(report):
    keys = [(row["metric"], row["context"], row["depth"]) for row in report["rows"]]
    assert len(keys) == len(set(keys)), "a metric with its labels is unique"
    return {(row["metric"], row["context"]): row for row in report["rows"]}


@needs_peer
def test_decode_grows_one_sequence_beyond_the_window_beside_a_filled_peer(bench, monkeypatch):
    """Guards the filling: a peer with fewer cells in use than tokens asked for would look fast."""
    monkeypatch.setattr(filling, "COMPUTED", 64)
    monkeypatch.setattr(decode, "NUM_TOKENS", 4)
    seen = []
    real = LlamaCpp.feed

    def feed(self, token_ids):
        real(self, token_ids)
        positions = (self._lib.llama_memory_seq_pos_min, self._lib.llama_memory_seq_pos_max)
        seen.append((self.num_tokens, *(position(self._memory, 0) for position in positions)))
        assert self._lib.llama_memory_seq_pos_max(self._memory, 1) == -1, "copies are the sequence's own"

    monkeypatch.setattr(LlamaCpp, "feed", feed)
    ran = []

    def generated(engine, token_ids, *args, **options):
        result = generate(engine, token_ids, *args, **options)
        ran.append((engine, len(token_ids), result.timings.decode_tokens_per_s))
        return result

    monkeypatch.setattr(decode, "generate", generated)
    where = ["--context", "1400", "--context", "48", "--context", "200", "--runs", "2"]
    code, report = bench("decode", *SELECTED, *where, "--peer", "llama.cpp", "--peer-context", "300")
    assert code == 0
    rows = figures(report)
    assert [(first, last + 1) for _, first, last in seen] == [(0, tokens) for tokens, _, _ in seen]
    assert max(tokens for tokens, _, _ in seen) == 200 + 3
    assert rows["decode_tokens_per_s", 200]["peer"] > 0
    assert rows["decode_tokens_per_s", 1400]["peer"] is None, "longer than --peer-context"
    assert rows["attended_tokens", 1400]["ours"] < 128
    assert rows["decode_tokens_per_s", 1400]["budget"] == 128
    kept = rows["decode_speed_kept", 1400]
    (grown, *_), (short, *_) = ran[-4:-2]
    assert grown is not short, "each holds its own context"
    assert [(engine, size) for engine, size, _ in ran[-4:]] == [(grown, 1400), (short, 48)] * 2
    rates = [rate for *_, rate in ran[-4:]]
    assert kept["ours"] == pytest.approx((rates[0] / rates[1] + rates[2] / rates[3]) / 2)
    assert (kept["runs"], kept["unit"]) == (2, "of that at 48")


def test_decode_under_limits_tells_what_lies_where(bench, monkeypatch):
    """Guards `--device-budget`: with room for everything, memory would be measured as disk."""
    monkeypatch.setattr(decode, "NUM_TOKENS", 4)
    limits = ["--device-budget", "512KiB", "--host-budget", "512KiB", "--prefill-budget", "128"]
    code, report = bench("decode", *SELECTED, *limits, "--context", "1500", "--runs", "1")
    assert code == 0
    rows = figures(report)
    for tier in ("device", "host"):
        held = [rows[f"{tier}_{what}_bytes", 1500]["ours"] for what in ("leaf", "index")]
        assert 0 < sum(held) <= 512 << 10
    assert 93 <= rows["disk_leaf_bytes", 1500]["ours"] / 16384 <= 96  # and the turn that was cut off
    assert rows["host_index_bytes", 1500]["ours"] > 0


def test_exact_attention_still_refuses_what_the_window_cannot_hold(bench):
    """Guards `--attention exact`: figures beyond the window are of answers that nobody can use."""
    code, report = bench("decode", "--context", "2000", "--runs", "1")
    assert code != 0
    assert "--attention selected" in report["error"]["message"]


def test_prefill_tells_how_much_of_its_speed_it_keeps(bench):
    """Guards the row that compares: of the shortest context, whatever the order."""
    code, report = bench("prefill", *SELECTED, "--context", "1300", "--context", "64", "--runs", "1")
    assert code == 0
    rows = figures(report)
    speeds = [rows["prefill_tokens_per_s", context]["ours"] for context in (1300, 64)]
    assert rows["prefill_speed_kept", 1300]["ours"] == pytest.approx(speeds[0] / speeds[1])


@needs_peer
@pytest.mark.usefixtures("children_in_process")
def test_resume_of_a_long_conversation_reads_a_part_of_it(bench):
    """Guards the shares: abstracts are a tenth of the KV; all of the KV would be exact attention's."""
    where = ["--context", "1500", "--prefill-budget", "128"]
    code, report = bench("resume", *SELECTED, *where, "--runs", "1", "--cold-runs", "0")
    assert code == 0
    rows = figures(report)
    assert rows["reused_tokens", 1500]["ours"] >= 1500 - 15
    share, index = (rows[f"resume_{what}_share", 1500]["ours"] for what in ("read", "index"))
    assert 0.005 < index < 0.11
    assert index < share < 0.5
    assert ("cold_ttft_s", 1500) not in rows


def test_perplexities_are_equal_where_both_read_everything(bench):
    """Guards what is compared: other positions, a token more or less, or a sink counted twice would differ."""
    code, report = bench(
        "perplexity", "--tokens", "500", "--sliding-window", "512", "--prefill-budget", "1024"
    )
    rows = figures(report)
    assert code == 0
    everything = rows["perplexity", 500]
    assert everything["ours"] == pytest.approx(everything["peer"], rel=2e-3)
    assert everything["attention"] == "selected"
    assert ("perplexity_beyond_window", 500) not in rows


def test_a_budget_has_no_more_device_memory_than_the_window(bench):
    """Guards "at equal or smaller device memory"."""
    code, report = bench(
        "perplexity", "--tokens", "1500", "--sliding-window", "256", "--prefill-budget", "128"
    )
    rows = figures(report)
    assert code == 0
    assert rows["perplexity_beyond_window", 1500]["peer"] != rows["perplexity", 1500]["peer"]
    assert 0 < rows["device_bytes", 1500]["ours"] <= rows["device_bytes", 1500]["peer"]


@pytest.mark.parametrize("has_sink", [True, False])
def test_a_sliding_window_reads_the_last_tokens_and_no_other(tiny_model, has_sink):
    """Guards the peer of perplexity: one column too few, or the sink at a far distance, and it looks worse."""
    setting = Setting(Config().replace({"model": str(tiny_model), "attention": "exact"}))
    decoder = setting.model.decoder
    generator = torch.Generator().manual_seed(3)
    count, window, scale = 48, 64, 0.125
    q, k, v = (torch.randn(4 * count, heads, 64, generator=generator) for heads in (4, 2, 2))
    with setting.engine(setting.roomy(300)) as engine, torch.inference_mode():
        residency = residency_of(engine)
        sequence = Sequence(SEQUENCE, durable=False, directory=Directory(2))
        residency.sequences[SEQUENCE] = sequence
        sliding = SlidingAttention(residency, decoder.rope, window, scale, has_sink)
        for start in range(0, 4 * count, count):
            block = slice(start, start + count)
            attend = sliding.begin(sequence, range(count), Arrivals())
            found = [attend(layer, q[block], k[block], v[block]) for layer in range(2)][1]
            sequence.append(range(count), exactly=True)
    keys, values = k.bfloat16().float(), v.bfloat16().float()
    first, start = 3 * count - window, 3 * count
    cos, sin = decoder.rope.turn(torch.tensor([-(first - 16)]))
    to_sink = turned(q, torch.cat([cos, sin], dim=1), decoder.rope.style)[0]
    for position in (start, start + 17, 4 * count - 1):
        for head in range(4):
            scores = keys[first : position + 1, head // 2] @ q[position, head]
            read = values[first : position + 1, head // 2]
            if has_sink:
                scores = torch.cat([keys[:16, head // 2] @ to_sink[position, head], scores])
                read = torch.cat([values[:16, head // 2], read])
            want = (scores * scale).softmax(0) @ read
            assert torch.allclose(found[position - start, head], want, atol=0.02)


@needs_peer
def test_a_passkey_is_looked_for_at_every_depth_in_both_contexts(bench):
    """Guards the search: a random model finds nothing, and nothing found must not become a share of 1."""
    where = [
        "--context",
        "1300",
        "--short-context",
        "300",
        "--depth",
        "0",
        "--depth",
        "100",
        "--numbers",
        "2",
    ]
    code, report = bench("passkey", *where, "--prefill-budget", "128")
    assert code == 0
    depths = [(row["metric"], row["depth"], row["ours"], row["peer"]) for row in report["rows"]]
    assert depths == [
        (f"passkey_{what}_{context}", depth, 0, 0)
        for context in ("front", "end")
        for what, depth in (("found", 100), ("found", 0), ("solved", None))
    ]
    assert all(row["ratio"] is None for row in report["rows"])


def test_a_passkey_wants_the_longer_context_to_be_longer(bench):
    """Guards the comparison: the exact one silently had fewer tokens than it was asked to have."""
    code, message = bench("passkey", "--context", "300", "--short-context", "400")
    assert code != 0
    assert "--short-context 400" in str(message)


def test_each_depth_hides_another_number():
    """Guards against an answer remembered from another depth; the deepest comes first, to keep what is before."""
    things = hidden_at([0, 50, 100])
    assert [thing.depth for thing in things] == [100, 50, 0]
    assert len({thing.answer for thing in things}) == 3
    assert all(thing.answer in thing.needle and thing.answer not in thing.question for thing in things)


def test_numbers_around_a_depth_lie_within_the_text_and_differ():
    """Guards a name asked for whose number is another one's, and a depth counted where nothing was hidden."""
    things = hidden_at([0, 25, 50, 75, 100], numbers=9)
    assert [thing.at for thing in things] == sorted((thing.at for thing in things), reverse=True)
    assert len({thing.answer for thing in things}) == len({thing.question for thing in things}) == 45
    assert all(abs(thing.at - thing.depth) <= 8 and 0 <= thing.at <= 100 for thing in things)
    assert {(thing.depth, thing.answer) for thing in hidden_at([0, 25, 50, 75, 100])} == {
        (thing.depth, thing.answer) for thing in things if thing.at == thing.depth
    }


@needs_peer
def test_a_soak_keeps_every_limit_and_damages_nothing(bench, data_dir):
    """Guards the accounts: what is demoted, evicted and promoted again must stay within all three limits."""
    limits = ["--device-budget", "512KiB", "--host-budget", "1MiB", "--disk-budget", "4MiB"]
    code, report = bench("soak", "--tokens", "2500", *limits)
    assert code == 0
    rows = {row["metric"]: row for row in report["rows"]}
    assert rows["soak_tokens"]["ours"] >= 2500
    for tier in ("device", "host", "disk"):
        assert 0 < rows[f"budget_honesty_{tier}"]["ours"] <= 1.0
    assert rows["reused_tokens"]["ours"] > 0
    assert rows["selected_answers"]["ours"] > 0
    assert rows["damaged_leaves"]["ours"] == rows["check_problems"]["ours"] == 0
    assert list(data_dir.iterdir()) == []


@needs_peer
def test_a_soak_ends_when_a_limit_was_passed(bench, monkeypatch):
    """Guards the guard: a peak above its limit in the middle of the run must not drown in a table."""
    real = soak._Watch.__init__

    def smaller(self, config, data_dir):
        real(self, dataclasses.replace(config, host_budget=1), data_dir)

    monkeypatch.setattr(soak._Watch, "__init__", smaller)
    limits = ["--device-budget", "512KiB", "--host-budget", "1MiB", "--disk-budget", "4MiB"]
    code, report = bench("soak", "--tokens", "2500", *limits)
    assert code != 0
    assert "the host tier held" in report["error"]["message"]


def test_a_bundled_text_is_repeated_under_another_name():
    """Guards figures of speed from passing for those of a text that was never read."""
    text = Text("novel", [1, 2, 3], [])
    assert text.at_least(3) is text
    assert text.at_least(7) == Text("novel, repeated", [1, 2, 3] * 3, [])


@pytest.mark.parametrize(
    ("method", "columns", "window", "want"),
    [
        ("window", 4096, 8192, 0),
        ("cascade", 256, 8192, 256 * 1176),
        ("cascade", 1024, 1 << 20, (1024 // 128 + (512 + 3 * 128) // 4) * 1176),
        ("cascade", 4096, 1 << 20, (4096 // 128 + (512 + 7 * 128) // 8) * 1176),
        ("cascade", 4096, 8192, (4096 // 128 + (256 + 7 * 64) // 8) * 1176),
    ],
)
def test_the_floor_counts_the_abstracts_that_a_method_reads(method, columns, window, want):
    """Guards eta_decode: a floor without the index flatters, one with all low-bit keys does so more."""

    class Fake:
        config = Config().replace({"selection": method})
        shape = type("Shape", (), {"num_layers": 30, "num_kv_heads": 3, "head_dim": 64, "leaf_bytes": 12288})
        model = SimpleNamespace(decoder=SimpleNamespace(config=SimpleNamespace(context_length=window)))

    assert index_bytes_read(Fake, columns * 16) == want * 30
    assert np.isscalar(index_bytes_read(Fake, 16))


def test_the_floor_of_a_gpu_reads_abstracts_from_host_memory(monkeypatch):
    """Guards eta_decode on a GPU: leaves are chosen by abstracts in host memory, far slower than its own."""
    monkeypatch.setattr(floor, "index_bytes_read", lambda *_: 2_000_000)
    monkeypatch.setattr(floor, "bytes_per_token", lambda _decoder: 8_000_000)
    setting = SimpleNamespace(
        shape=SimpleNamespace(column_bytes=16_000), selects=True, model=SimpleNamespace(decoder=None)
    )
    host = {"memory_read_gb_per_s": 10.0}
    assert floor.decode_floor(setting, host, 4096, 1000) == pytest.approx((8e6 + 1e6 + 2e6) / 1e10)
    gpu = host | {"device_memory_read_gb_per_s": 1000.0}
    assert floor.decode_floor(setting, gpu, 4096, 1000) == pytest.approx(2e6 / 1e10)
