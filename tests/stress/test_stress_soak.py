"""A million tokens of many conversations in one Runtime, under limits far too small for them, on a random model."""

import pytest
from gguf_writer import write_tiny_gguf

from edgekv.bench import soak
from edgekv.bench.setting import Setting
from edgekv.bench.text import has_bindings
from edgekv.config import Config


@pytest.mark.stress
@pytest.mark.timeout(0)
@pytest.mark.skipif(not has_bindings(), reason="llama-cpp-python is not installed")
def test_a_million_tokens_keep_every_limit(tmp_path, data_dir, seed):
    """Guards against bytes that are held and not in the ledger, or given back twice: a few a step are many here.

    The same at 2,500 tokens is in every test run: tests/bench/test_bench_long.py.
    """
    model = write_tiny_gguf(
        tmp_path / "tiny.gguf", "llama", "Q4_1", heads=4, kv_heads=2, head_dim=64, context=1024
    )
    options = {"model": str(model), "data_dir": data_dir, "attention": "selected", "seed": seed}
    setting = Setting(Config().replace(options))
    setting = Setting(setting.config.replace(soak.default_limits(setting)))
    rows = {row.metric: row.ours for row in soak.measure(setting, soak.TOKENS, lambda _what: None)}
    assert rows["soak_tokens"] >= soak.TOKENS
    assert max(rows[f"budget_honesty_{tier}"] for tier in ("device", "host", "disk")) <= 1.0
    assert rows["process_memory_growth_bytes"] < 64 << 20
    assert rows["damaged_leaves"] == rows["check_problems"] == 0
