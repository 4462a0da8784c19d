"""Cancelling from many threads: nothing is stuck, nothing is lost, nothing is left behind."""

import pytest
from gguf_writer import write_tiny_gguf
from patience import Held
from stress_cancels import Campaign, open_runtime

from edgekv.config import Config
from edgekv.engine.build import load_model


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    path = write_tiny_gguf(tmp_path_factory.mktemp("m") / "m.gguf", num_layers=2, context=2048)
    loaded = load_model(Config(threads=1), path, with_front=False)
    yield loaded
    loaded.front.close()


@pytest.mark.stress(ci=True)
def test_cancels_at_random_moments(model, tmp_path, campaign_size, seed):
    """Guards cancelling by every way there is, 32 threads at once: no deadlock, no lost event, no leaked thread,
    descriptor or byte in the ledger; and afterwards every conversation answers."""
    with open_runtime(model, tmp_path / "warm"):  # what a first Runtime opens for good is not counted
        pass
    cancels, held = campaign_size("--cancels", ci=48), Held()
    with open_runtime(model, tmp_path / "data") as runtime:
        campaign = Campaign(runtime, num_threads=32, num_cancels=cancels, seed=seed)
        campaign.run()
        assert campaign.violations[:9] == []
        chats = {chat.name: chat for chat in campaign.chats}
        for chat in chats.values():
            result = chat.send("and now?", max_tokens=2)  # random weights may end it at once
            assert (result.usage.completion_tokens, result.finish_reason) in {
                (2, "length"),
                (1, "stop"),
                (2, "stop"),
            }
            assert {turn.state for turn in chat.history()} <= {"complete", "stopped"}
        assert (runtime.stats().num_waiting, runtime.stats().is_generating) == (0, False)
        for chat in chats.values():
            runtime.forget(chat.name, private=chat.private)
        use = runtime.stats().cache
        assert (use.device_bytes, use.host_bytes, use.disk_bytes) == (0, 0, 0)
    assert campaign.counts.total() >= cancels
    held.wait_until_nothing_is_new()
