"""The same engine on CUDA: device memory, pinned host, copies on their own stream. Run with `-m gpu`."""

import pytest
import torch
from engine_fixtures import Recorder, ask, engine_on
from gguf_writer import write_tiny_gguf

from edgekv.config import Config
from edgekv.engine.build import load_model

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]
SELECTED = {"attention": "selected", "budget": 256, "prefill_budget": 256}
PROMPT = [(7 * n + 3) % 300 + 4 for n in range(700)]


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    path = write_tiny_gguf(tmp_path_factory.mktemp("m") / "m.gguf", quant="Q4_0", num_layers=3, context=4096)
    return [load_model(Config(device=device), path, with_front=False) for device in ("cpu", "cuda")]


@pytest.mark.parametrize(
    "limits", [{}, {"device_leaves": 60, "host_leaves": 60}], ids=["resident", "streamed"]
)
def test_cuda_equals_cpu(models, tmp_path, limits):
    """Guards the CUDA path against the CPU: logits over 40 steps within 16-bit rounding.

    Tokens are compared up to the first near tie, after which the two texts may rightly differ.
    """
    cpu, cuda = models
    with engine_on(cpu) as engine:
        seen = Recorder(engine)
        want = ask(engine, PROMPT, max_tokens=40, durable=False)
        want_logits = seen.all()
    with engine_on(cuda, tmp_path / "d", in_place=False, **limits) as engine:
        seen = Recorder(engine)
        ask(engine, PROMPT, max_tokens=1)
        got = ask(engine, PROMPT, max_tokens=40)
        difference = (seen.all()[1:].cpu() - want_logits[: len(seen.rows) - 1]).abs().max()
        assert float(difference / want_logits.std()) < 0.1
        assert got.token_ids[:5] == want.token_ids[:5]
        assert len(got.token_ids) == len(want.token_ids)


@pytest.mark.parametrize(
    "limits", [{}, {"device_leaves": 90, "host_leaves": 90}], ids=["resident", "promoted"]
)
@pytest.mark.parametrize("selection", ["cascade", "window"])
def test_cuda_selects_as_the_cpu_does(models, tmp_path, limits, selection):
    """Guards selection on CUDA: both go on from the same stored leaves, so they choose and attend to the same."""
    cpu, cuda = models
    options = {**SELECTED, "selection": selection}
    with engine_on(cpu, tmp_path / "d", **options) as engine:
        ask(engine, PROMPT, max_tokens=1)
    with engine_on(cpu, tmp_path / "d", **options) as engine:
        seen = Recorder(engine)
        want = ask(engine, PROMPT, max_tokens=12)
        want_logits = seen.all()
    with engine_on(cuda, tmp_path / "d", in_place=False, **options, **limits) as engine:
        seen = Recorder(engine)
        got = ask(engine, PROMPT, max_tokens=12)
        difference = (seen.all()[0].cpu() - want_logits[0]).abs().max()
    assert float(difference / want_logits.std()) < 0.1
    assert got.usage.reused_tokens == want.usage.reused_tokens > 0
    assert got.exactness == want.exactness == "selected"
    assert got.attention.mean_tokens == want.attention.mean_tokens
    assert got.attention.promoted_bytes > 0, "a resume brings the window, and what is chosen when it is"


def test_auto_selects_beyond_the_device(models):
    """Guards `auto` on CUDA: exact while the conversation fits the device pool, a budget from there on."""
    with engine_on(
        models[1], in_place=False, **{**SELECTED, "attention": "auto"}, device_leaves=90
    ) as engine:
        assert ask(engine, PROMPT[:200], max_tokens=4, durable=False).exactness == "exact"
        assert ask(engine, PROMPT, max_tokens=4, durable=False).exactness == "selected"
