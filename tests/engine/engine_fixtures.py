"""A tiny model, engines around it under any limits, and forced decoding through the real engine."""

from contextlib import contextmanager

import torch

from edgekv.config import Config
from edgekv.engine.build import assemble
from edgekv.engine.request import Request, Sampling
from edgekv_storage import DataDir

GREEDY = Sampling(temperature=0)


def nothing(_event):
    """An emit that nobody listens to."""


def never():
    """An is_cancelled that never is."""
    return False


@contextmanager
def engine_on(
    model,
    path=None,
    *,
    in_place=True,
    device_leaves=4000,
    host_leaves=4000,
    disk_budget=1 << 30,
    attention="exact",
    **options,
):
    """An engine whose limits are given in leaves of the tiny model."""
    c = model.decoder.config
    leaf = 2 * c.num_kv_heads * 16 * c.head_dim * 2
    config = Config(
        device_budget=device_leaves * leaf,
        host_budget=host_leaves * leaf,
        disk_budget=disk_budget,
        attention=attention,
        **options,
    )
    directory = None if path is None else DataDir.open(path)
    engine = assemble(config, model, data_dir=directory, in_place=in_place)
    engine._front = KeepOpen(engine._front)
    try:
        yield engine
    finally:
        use = engine.cache_use()
        assert use.device_peak_bytes <= config.device_budget
        assert use.host_peak_bytes <= config.host_budget
        engine.close()
        assert engine.cache_use().device_bytes == engine.cache_use().host_bytes == 0, "slots leaked"
        if directory is not None:
            directory.close()


class KeepOpen:
    """A front shared by many engines."""

    def __init__(self, front):
        self.tokenizer, self.context_length = front.tokenizer, front.context_length

    def close(self):
        pass


def ask(
    engine,
    ids,
    *,
    max_tokens=8,
    durable=True,
    sequence_id=b"s" * 16,
    emit=nothing,
    cancelled=never,
    **options,
):
    request = Request(sequence_id, ids, durable, options.pop("sampling", GREEDY), max_tokens, **options)
    return engine.generate(request, emit, cancelled)


class Recorder:
    """Records the logits of each generated token."""

    def __init__(self, engine):
        self.rows = []
        inner = engine._runner.logits

        def logits(hidden):
            out = inner(hidden)
            self.rows.append(out[-1].clone())
            return out

        engine._runner.logits = logits

    def all(self):
        return torch.stack(self.rows)
