"""Selected attention over memory that the host cannot reach, as on a GPU: same choices, same logits.

The GPU is a stand-in (`far_device.py`), so that this runs everywhere; `test_engine_gpu.py` asks a real one.
"""

import random

import pytest
import torch
from engine_fixtures import Recorder, ask, engine_on
from far_device import far_device, load_far
from gguf_writer import write_tiny_gguf

from edgekv.cache.directory import ABSENT
from edgekv.config import Config
from edgekv.engine import selected
from edgekv.engine.build import load_model
from edgekv.errors import CapacityError

SELECTED = {"attention": "selected", "budget": 128, "prefill_budget": 128}
SMALL = {"device_leaves": 60, "host_leaves": 60}


@pytest.fixture(scope="module")
def path(tmp_path_factory):
    return write_tiny_gguf(tmp_path_factory.mktemp("m") / "m.gguf", num_layers=2, context=512)


@pytest.fixture(scope="module")
def near(path):
    loaded = load_model(Config(threads=1), path, with_front=False)
    yield loaded
    loaded.front.close()


@pytest.fixture(scope="module")
def far(path):
    loaded = load_far(path)
    yield loaded
    loaded.front.close()


@pytest.fixture(scope="module")
def stored(near, tmp_path_factory):
    """(a folder with 800 tokens, beyond the trained window: queries are turned; their answer, its logits)."""
    folder = tmp_path_factory.mktemp("stored") / "d"
    answer(near, folder, ids=prompt(800), max_tokens=1, **SELECTED)
    return folder, *answer(near, folder, ids=prompt(800), **SELECTED)


def prompt(count, seed=0):
    return [random.Random(seed).randrange(4, 300) for _ in range(count)]


def answer(model, folder=None, *, ids, max_tokens=4, in_place=None, **options):
    """(result, logits of every token) of one answer by an engine of its own."""
    with engine_on(model, folder, in_place=in_place, **options) as engine:
        seen = Recorder(engine)
        result = ask(engine, ids, max_tokens=max_tokens, durable=folder is not None)
        return result, torch.stack([row.cpu() for row in seen.rows])


def same(found, want):
    return float((found - want).abs().max() / want.std()) < 0.02


@pytest.mark.parametrize("method", ["exact", "cascade", "oracle"])
def test_far_memory_changes_nothing(near, far, method):
    """Guards every tensor's place, and that a budget is read at all: on a GPU `--attention selected` read
    everything and did not say so. Methods rank in host memory; only the oracle looks at leaves.
    """
    options = {"attention": "exact"} if method == "exact" else {**SELECTED, "selection": method}
    options |= {"ids": prompt(240), "max_tokens": 3}
    want, want_logits = answer(near, **options)
    with far_device():
        got, logits = answer(far, **options)
    assert got.exactness == want.exactness == ("exact" if method == "exact" else "selected")
    assert same(logits, want_logits)
    assert got.attention.mean_tokens == want.attention.mean_tokens <= 128
    assert got.attention.most_read == want.attention.most_read
    if method != "exact":
        assert got.attention.mass_kept == pytest.approx(want.attention.mass_kept, rel=1e-3)


def test_auto_selects_on_a_far_device(far):
    """Guards `auto`: beyond the device pool a budget is read, where every leaf was streamed for every token."""
    options = {**SELECTED, "attention": "auto", "device_leaves": 24, "max_tokens": 1}
    with far_device():
        assert answer(far, ids=prompt(100), **options)[0].exactness == "exact"
        assert answer(far, ids=prompt(200), **options)[0].exactness == "selected"


def test_leaves_on_the_host_come_up(near, far):
    """Guards promotion of what gave way to the host: single leaves, on the device before they are attended."""
    options = {**SELECTED, "ids": prompt(300), "device_leaves": 30, "max_tokens": 2}
    want, want_logits = answer(near, in_place=False, **options)
    with far_device():
        got, logits = answer(far, **options)
    assert same(logits, want_logits)
    assert got.attention.promoted_bytes == want.attention.promoted_bytes > 0
    assert got.attention.disk_bytes_read == got.attention.host_bytes_read == 0


def test_leaves_on_disk_come_up(far, stored):
    """Guards promotion from disk, which cannot be read into a GPU's memory: leaves land on the host first."""
    with far_device():
        got, logits = answer(far, stored[0], ids=prompt(800), **SELECTED, **SMALL)
    assert got.usage.reused_tokens == stored[1].usage.reused_tokens == 784
    assert same(logits, stored[2])
    assert got.attention.disk_bytes_read > 0
    assert got.attention.host_bytes_read == 0, "all that is attended lies on the device"


def test_the_tier_without_room_is_named(near, far, stored, monkeypatch):
    """Guards the message: no slot to land in is the host's limit, none to promote to was called the host's too."""
    few = {**SELECTED, "budget": 512, "device_leaves": 24, "in_place": False}
    with engine_on(near, stored[0], **few) as engine, pytest.raises(CapacityError, match="--device-budget"):
        ask(engine, prompt(800), max_tokens=1)
    with far_device(), engine_on(far, stored[0], in_place=None, **SELECTED, **SMALL) as engine:
        promotion, host = engine._residency.promotion, engine._residency.mover.host
        make, taken = promotion.make_abstracts, []

        def make_and_fill(*args):
            found = make(*args)
            taken.append(host.take(host.num_free))
            return found

        monkeypatch.setattr(promotion, "make_abstracts", make_and_fill)
        monkeypatch.setattr(promotion, "_make_room", lambda *_: None)
        with pytest.raises(CapacityError, match="--host-budget"):
            ask(engine, prompt(800), max_tokens=1)
        for slots in taken:
            host.give(slots)


def test_the_way_up_may_be_closed_between_two_tokens(near, stored, monkeypatch):
    """Guards passes that go on without being opened anew: host room was made, nothing moved, and the next leaf from
    disk had no slot to land in.
    """
    monkeypatch.setattr(selected, "AWAY_WEIGHT", 1.0)  # what is away is chosen as anything else
    monkeypatch.setattr(selected, "PERIOD_AWAY", 1)
    with engine_on(near, stored[0], in_place=False, **SELECTED, **SMALL) as engine:
        seen, promotion = Recorder(engine), engine._residency.promotion
        inner, host = engine._runner.logits, engine._residency.mover.host

        def logits(hidden):
            promotion.give_way(engine._residency._active, 1, host)
            for slots in promotion.promoted._promoted:
                promotion.promoted._give(slots[slots != ABSENT])  # the next token needs leaves from disk
            return inner(hidden)

        engine._runner.logits = logits
        ask(engine, prompt(800), max_tokens=4)
        assert same(seen.all(), stored[2])


def test_triton_forms_serve_it(near, far):
    """Guards the forms that CUDA runs: appending, attention over listed slots and low-bit keys, through Triton's
    interpreter, with every argument of a kernel on the device.
    """
    pytest.importorskip("triton")
    options = {"attention": "selected", "budget": 96, "prefill_budget": 96}
    logits = []
    for model in (near, far):
        with far_device(), engine_on(model, in_place=None, **options) as engine:
            first = ask(engine, prompt(127), max_tokens=1, durable=False)
            with far_device("triton"):
                seen = Recorder(engine)
                ask(engine, [*prompt(127), *first.token_ids], max_tokens=2, durable=False)
                logits.append(torch.stack([row.cpu() for row in seen.rows]))
    assert same(logits[1], logits[0])
