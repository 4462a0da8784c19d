"""An exception where a move begins, as when memory runs short: nothing counts as there that never came.

What failed is raised; the same request in the same engine is then answered as if nothing had happened.
"""

import random
import shutil
import time

import numpy as np
import pytest
from engine_fixtures import Recorder, ask, engine_on
from gguf_writer import write_tiny_gguf

from edgekv.cache.directory import ABSENT, Directory
from edgekv.config import Config
from edgekv.engine.build import load_model
from edgekv.engine.exact import ExactAttention
from edgekv.tiers.disk import DiskTier
from edgekv.tiers.memory import MemoryTier
from edgekv.tiers.mover import Mover
from edgekv_storage.io.disk import OsDisk

NUM_LAYERS = 3
SELECTED = {"attention": "selected", "budget": 256, "prefill_budget": 256}
ROOMY = {}
TIGHT = {"device_leaves": 90, "host_leaves": 60}
LIMITS = {
    "computed": TIGHT | {"host_leaves": 400},
    "restored": ROOMY,
    "streamed": TIGHT,
    "restored on a GPU": {**ROOMY, "in_place": False},
    "streamed on a GPU": {**TIGHT, "in_place": False},
    "selected": {**SELECTED, **TIGHT},
    "selected on a GPU": {**SELECTED, **TIGHT, "in_place": False, "host_leaves": 400},
    "selected, without abstracts": {**SELECTED, **TIGHT, "host_leaves": 200},
}
WITH_ABSTRACTS = ("selected", "selected on a GPU")


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    path = write_tiny_gguf(tmp_path_factory.mktemp("m") / "m.gguf", num_layers=NUM_LAYERS, context=4096)
    loaded = load_model(Config(threads=1), path, with_front=False)
    yield loaded
    loaded.front.close()


def prompt(count=900, seed=0):
    return [random.Random(seed).randrange(4, 300) for _ in range(count)]


@pytest.fixture(scope="module")
def original(model, tmp_path_factory):
    """A folder each with the prompt's KV, made under exact and under selected attention."""
    folder = tmp_path_factory.mktemp("original")
    for name, options in (("exact", {}), ("selected", SELECTED)):
        with engine_on(model, folder / name, **options) as engine:
            ask(engine, prompt(), max_tokens=1)
    return folder


@pytest.fixture
def open_stored(model, original, tmp_path):
    """Opens engines on copies of that folder, or on none."""

    def open_one(case, number):
        folder = None
        if case != "computed":
            folder = tmp_path / str(number)
            shutil.copytree(original / ("selected" if case in WITH_ABSTRACTS else "exact"), folder)
        return engine_on(model, folder, io="pread", **LIMITS[case])

    return open_one


def fail_once(patch, owner, name, number):
    """The `number`-th call of the method raises; how often it was called."""
    inner, calls = getattr(owner, name), []

    def failing(self, *args, **kwargs):
        calls.append(1)
        if len(calls) == number:
            raise MemoryError("simulated")
        return inner(self, *args, **kwargs)

    patch.setattr(owner, name, failing)
    return calls


@pytest.fixture
def nothing_lands_in_given_slots(monkeypatch):
    """Reads are slow, and a slot that is given back must not be landed in any more."""
    read, give, preadv = DiskTier.read, MemoryTier.give, OsDisk.preadv
    begun = []

    def slow(disk, fd, buffers, offset):
        time.sleep(0.005)
        return preadv(disk, fd, buffers, offset)

    def reading(disk, places, layer, columns, slots, into, **options):
        found = read(disk, places, layer, columns, slots, into, **options)
        begun.append((found, into, set(slots.tolist())))
        return found

    def giving(tier, slots):
        for found, into, landing in begun:
            assert tier is not into or found.transfer.done() or landing.isdisjoint(slots.tolist())
        return give(tier, slots)

    monkeypatch.setattr(OsDisk, "preadv", slow)
    monkeypatch.setattr(DiskTier, "read", reading)
    monkeypatch.setattr(MemoryTier, "give", giving)


def answers_as_if_nothing_had_happened(open_stored, case, owner, name, number):
    """An engine whose `number`-th call of that method raises (the last one, if there are fewer), then asked anew,
    beside one where all went well.
    """
    with open_stored(case, 1) as engine, pytest.MonkeyPatch.context() as patch:
        calls, seen = fail_once(patch, owner, name, -1), Recorder(engine)
        want, want_logits = ask(engine, prompt(), max_tokens=6), seen.all()
        assert calls, "nothing of this kind happens"
    with open_stored(case, 2) as engine:
        with pytest.MonkeyPatch.context() as patch:
            fail_once(patch, owner, name, min(number, len(calls)))
            with pytest.raises(MemoryError, match="simulated"):
                ask(engine, prompt(), max_tokens=6)
        seen = Recorder(engine)
        got = ask(engine, prompt(), max_tokens=6)
        difference = float((seen.all() - want_logits).abs().max())
        # Where only the prompt's last token was left to compute: alone it rounds otherwise than in a block.
        assert difference <= (0.01 if case == "computed" else 0)
        assert (got.token_ids, got.exactness) == (want.token_ids, want.exactness)
        assert (got.cache.damaged_leaves, got.notices) == (0, ())
        if engine._residency.mover.disk is not None:
            assert engine._residency.mover.disk.store.check() == []


STORED = [case for case in LIMITS if case != "computed"]
READS = [(case, number) for case in STORED for number in (1, 2, NUM_LAYERS)]
READS += [("streamed", 9), ("selected", 4), *(("selected, without abstracts", n) for n in (4, 5, 6))]


@pytest.mark.usefixtures("alike", "nothing_lands_in_given_slots")
@pytest.mark.parametrize(("case", "number"), READS)
def test_a_read_that_could_not_be_issued_left_nothing_behind(open_stored, case, number):
    """Guards the next answer: slots were recorded as present before anything was read into them, so that it
    attended to whatever lay there, and was called exact."""
    answers_as_if_nothing_had_happened(open_stored, case, DiskTier, "read", number)


COPIES = ["computed", "restored on a GPU", "streamed on a GPU", "selected on a GPU"]


@pytest.mark.usefixtures("alike")
@pytest.mark.parametrize("number", [1, 2, 99])
@pytest.mark.parametrize("case", COPIES)
def test_a_copy_that_could_not_be_made_left_nothing_behind(open_stored, case, number):
    """Guards what moves in memory: a demotion that failed kept its slots for ever, and no leaf counts as there that
    was not copied."""
    answers_as_if_nothing_had_happened(open_stored, case, Mover, "copy_slots", number)


@pytest.mark.parametrize("number", [1, 2, 99])
@pytest.mark.parametrize("name", ["grow", "put_device", "put_host"])
@pytest.mark.parametrize("case", ["computed", "streamed"])
def test_columns_that_could_not_be_recorded_are_nobodys(open_stored, case, name, number):
    """Guards the books: a sequence that had taken over stored tokens and not their columns failed for ever, and
    slots taken for columns to come were lost."""
    answers_as_if_nothing_had_happened(open_stored, case, Directory, name, number)


def test_a_slot_is_given_back_once_nobody_finds_it(model):
    """Guards leaving a tier: slots were free while still recorded, so that what failed in between left leaves that
    others write over."""
    with engine_on(model) as engine:
        ask(engine, prompt(100), max_tokens=1)
        mover, sequence = engine._residency.mover, engine._residency.sequences[b"s" * 16]
        mover.demote_to_host(sequence, np.arange(3))
        for tier, drop, put in (
            (mover.device, mover.drop_device, "put_device"),
            (mover.host, mover.drop_host, "put_host"),
        ):
            before = tier.num_free
            with pytest.MonkeyPatch.context() as patch:
                fail_once(patch, Directory, put, 1)
                with pytest.raises(MemoryError):
                    drop(sequence, np.arange(3))
            assert tier.num_free == before
            drop(sequence, np.arange(2))
            assert tier.num_free == before + 2 * NUM_LAYERS
        assert sequence.directory.on_host().tolist() == [2]


def test_a_table_that_could_not_be_made_is_not_taken_for_anothers(model):
    """Guards exact attention's slots: another conversation's table was used, had its directory changed as often."""
    with engine_on(model) as engine:
        for name in (b"a" * 16, b"b" * 16):
            ask(engine, prompt(100, seed=name[0]), max_tokens=1, durable=False, sequence_id=name)
        a, b = engine._residency.sequences.values()
        exact = engine._runner._exact
        a.directory.version = b.directory.version = 1000
        of_a = exact._slots(a, 99).device
        with pytest.MonkeyPatch.context() as patch:
            fail_once(patch, ExactAttention, "_tensor", 2)
            with pytest.raises(MemoryError):
                exact._slots(b, 99)
        assert exact._slots(b, 99).device.tolist() == b.directory.device.tolist()
        assert of_a.tolist() == a.directory.device.tolist()


def test_a_directory_that_could_not_grow_grows_later(monkeypatch):
    """Guards the two tables of slots: one had grown and not the other, and a column had no place in it."""
    directory = Directory(2)
    inner, calls = np.concatenate, []

    def concatenate(*args, **kwargs):
        calls.append(1)
        if len(calls) == 2:
            raise MemoryError("simulated")
        return inner(*args, **kwargs)

    monkeypatch.setattr(np, "concatenate", concatenate)
    with pytest.raises(MemoryError):
        directory.grow(100)
    assert directory.num_columns == 0
    directory.grow(100)
    assert directory.device.shape == directory.host.shape == (2, 100)
    assert (directory.host == ABSENT).all()
