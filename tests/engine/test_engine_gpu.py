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
