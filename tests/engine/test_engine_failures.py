"""Selected attention when something fails in mid-step: the disk, the method of selection, or a sequence's edges."""

import errno
import random
import shutil
import time

import pytest
import torch
from engine_fixtures import Recorder, ask, engine_on
from gguf_writer import write_tiny_gguf

from edgekv.config import Config
from edgekv.engine.budget import MIN_WINDOW_COLUMNS, SINK_COLUMNS, Budget
from edgekv.engine.build import load_model
from edgekv.errors import PolicyError
from edgekv.policies.selection.cascade import Cascade
from edgekv.policies.selection.selector import Selector
from edgekv.policies.selection.window import Window
from edgekv_storage.io.disk import OsDisk

SELECTED = {"attention": "selected", "budget": 128, "prefill_budget": 128}
ON_DISK = {"device_leaves": 60, "host_leaves": 90, "io": "pread"}
GPU = {**ON_DISK, "host_leaves": 60, "in_place": False}  # leaves land on the host
SEQUENCE = b"s" * 16


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    path = write_tiny_gguf(tmp_path_factory.mktemp("m") / "m.gguf", num_layers=2, context=4096)
    loaded = load_model(Config(threads=1), path, with_front=False)
    yield loaded
    loaded.front.close()


def prompt(count, seed=0):
    return [random.Random(seed).randrange(4, 300) for _ in range(count)]


@pytest.fixture(scope="module")
def original(model, tmp_path_factory, alike):
    """(folder with 640 tokens of a conversation, the next 16 and their logits with everything in memory)."""
    folder = tmp_path_factory.mktemp("original")
    with engine_on(model, folder / "d", **SELECTED) as engine:
        ask(engine, prompt(640), max_tokens=1)
    shutil.copytree(folder / "d", folder / "e")
    with engine_on(model, folder / "e", **SELECTED) as engine:
        seen = Recorder(engine)
        return folder / "d", ask(engine, prompt(640), max_tokens=16).token_ids, seen.all()


@pytest.fixture
def stored(original, tmp_path):
    """The same in a folder of its own."""
    shutil.copytree(original[0], tmp_path / "d")
    return tmp_path / "d", *original[1:]


class Reads:
    """Counts direct reads from now on, and fails or delays some."""

    def __init__(self, monkeypatch):
        self.code, self.first, self.count, self.pause_s = 0, 0, 0, 0.0
        self.stays, self.bad = False, None
        inner = OsDisk.preadv

        def preadv(disk, fd, buffers, offset):
            self.count += 1
            time.sleep(self.pause_s)
            if self.code and self.count == self.first:
                self.bad = offset
            if offset == self.bad and (self.stays or self.count == self.first):
                raise OSError(self.code, "simulated")
            return inner(disk, fd, buffers, offset)

        monkeypatch.setattr(OsDisk, "preadv", preadv)

    def fail(self, number, code, *, stays=False):
        """The `number`-th read from now on; `stays`: and every later one of the same place."""
        self.first, self.code, self.stays = self.count + number, code, stays


def when_decoding(engine, act):
    """Calls `act` once the first token is there."""
    inner, seen = engine._runner.logits, []

    def logits(hidden):
        if not seen:
            act()
        seen.append(1)
        return inner(hidden)

    engine._runner.logits = logits


@pytest.mark.parametrize("code", [errno.ENOMEM, errno.EIO])
@pytest.mark.parametrize(("number", "limits"), [(1, ON_DISK), (2, ON_DISK), (9, ON_DISK), (2, GPU), (9, GPU)])
def test_a_read_that_fails_once_is_made_again(model, stored, monkeypatch, number, limits, code):
    """Guards leaves against a moment's shortage: out of memory in mid-step took stored leaves for damaged, and
    other tokens came out of what was computed in their place."""
    folder, want, want_logits = stored
    with engine_on(model, folder, **SELECTED, **limits) as engine:
        reads, seen = Reads(monkeypatch), Recorder(engine)
        when_decoding(engine, lambda: reads.fail(number, code))
        got = ask(engine, prompt(640), max_tokens=16)
        assert reads.count >= reads.first
        assert got.token_ids == want
        assert float((seen.all() - want_logits).abs().max()) < 1e-3
        assert got.cache.damaged_leaves == 0


# the first one reads low-bit keys, which are made anew
@pytest.mark.parametrize(("number", "limits"), [(2, ON_DISK), (9, ON_DISK), (9, GPU)])
def test_a_leaf_that_is_lost_in_mid_step_is_computed_again(model, stored, monkeypatch, number, limits):
    """Guards recovery in decode: the step ends, nothing is guessed, the answer goes on and the store is whole."""
    folder, want, _ = stored
    with engine_on(model, folder, **SELECTED, **limits) as engine:
        reads = Reads(monkeypatch)
        when_decoding(engine, lambda: reads.fail(number, errno.EIO, stays=True))
        got = ask(engine, prompt(640), max_tokens=16)
        assert reads.count >= reads.first
        assert len(got.token_ids) == 16
        assert got.token_ids[0] == want[0]  # drawn before
        assert got.cache.damaged_leaves > 0
        assert any("computing again" in notice for notice in got.notices)
        assert 0 < got.attention.mean_tokens <= 128
        again = ask(engine, prompt(640), max_tokens=16)
        assert again.cache.damaged_leaves == 0
        assert engine._residency.mover.disk.store.check() == []


def test_a_slow_disk_is_only_slower(model, stored, monkeypatch):
    """Guards waiting: the same tokens, and a stop takes effect between two of them."""
    folder, want, _ = stored
    with engine_on(model, folder, **SELECTED, **ON_DISK) as engine:
        reads, count = Reads(monkeypatch), iter(range(100))
        when_decoding(engine, lambda: setattr(reads, "pause_s", 0.003))
        got = ask(engine, prompt(640), max_tokens=16)
        assert got.token_ids == want
        cut = ask(engine, prompt(640), max_tokens=16, cancelled=lambda: next(count) > 4)
        assert cut.finish_reason == "cancelled"
        assert cut.token_ids == want[: len(cut.token_ids)]
        assert 0 < len(cut.token_ids) <= 6


class Wrong(Selector):
    """A method that goes wrong at its n-th choice."""

    def __init__(self, kind, left):
        self.kind, self.left, self.inner = kind, left, Window()

    def reset(self):
        pass

    def select(self, step):
        self.left -= 1
        count = self.inner.select(step)
        if self.left >= 0:
            return count
        if self.kind == "raises":
            raise ZeroDivisionError("by\n  nothing")
        if self.kind == "too many":
            return step.num_columns + 1
        if self.kind == "negative":
            return -1
        if self.kind == "below":
            step.out[0] = step.columns.start - 1
        if self.kind == "beyond":
            step.out[count - 1] = step.columns.stop
        if self.kind == "far beyond":
            step.out[0] = 1 << 30
        if self.kind == "twice":
            step.out[count - 1] = step.out[0]
        if self.kind == "other shares":
            step.ranked[:] = [torch.ones(count + 1)]
        if self.kind == "no number":
            return None
        return count


KINDS = {
    "raises": "ZeroDivisionError: by nothing",
    "too many": "is the most",
    "negative": "-1 columns",
    "below": "column 0 was chosen",
    "beyond": "was chosen, not one of",
    "far beyond": "column 1073741824",
    "twice": "chosen twice",
    "other shares": "not a share of each",
    "no number": "TypeError",
}


@pytest.mark.parametrize("left", [0, 25], ids=["in prefill", "in decode"])
@pytest.mark.parametrize("kind", KINDS)
def test_a_method_that_goes_wrong_is_one_error(model, tmp_path, kind, left):
    """Guards the pools against a method anybody may write: a column that is not there is memory of another
    conversation. What was computed before stays, and the next request may choose otherwise."""
    ids = prompt(500)
    with engine_on(model, tmp_path / "d", **SELECTED, device_leaves=60, host_leaves=90) as engine:
        want = ask(engine, ids, max_tokens=12, sequence_id=b"w" * 16)
        selected = engine._runner.selected
        good, selected._selector = selected._selector, Wrong(kind, left)
        if left:
            selected._selector.left = 1 << 30
            when_decoding(engine, lambda: setattr(selected._selector, "left", left))
        engine._residency.block_columns = 8
        with pytest.raises(PolicyError, match="selection method Wrong failed") as caught:
            ask(engine, ids, max_tokens=30)
        assert KINDS[kind] in str(caught.value)
        assert "\n" not in str(caught.value)
        assert not engine._residency.stream.is_open
        sequence = engine._residency.sequences[SEQUENCE]
        assert sequence.directory.num_columns == -(-sequence.num_tokens // 16)
        assert sequence.num_tokens > 0
        selected._selector = good
        engine._residency.block_columns = 28
        assert ask(engine, ids, max_tokens=12, sequence_id=b"w" * 16).token_ids == want.token_ids
        assert len(ask(engine, ids, max_tokens=12).token_ids) == 12
        assert engine._residency.mover.disk.store.check() == []


@pytest.mark.parametrize("window", [64, 4096])
@pytest.mark.parametrize("count", [1, 17, 128, 144, 400])
def test_a_window_as_large_as_the_budget(model, count, window):
    """Guards budgets that sink and window use up: nothing is left to choose, nothing is read twice or skipped."""
    with engine_on(model, attention="selected", budget=128, prefill_budget=128, window=window) as engine:
        seen = Recorder(engine)
        result = ask(engine, prompt(count), max_tokens=20, durable=False)
        assert len(result.token_ids) == 20
        assert torch.isfinite(seen.all()).all()
        assert result.attention.mean_tokens <= 128


@pytest.mark.parametrize(("tokens", "window"), [(1, 1), (16, 16), (64, 4096), (80, 64), (1024, 128)])
def test_what_a_budget_is_made_of(tokens, window):
    """Guards the arithmetic of small budgets: a sink and a window always, and never more than was asked for beyond
    that least."""
    budget = Budget.of(tokens, window)
    assert budget.num_columns == max(SINK_COLUMNS + MIN_WINDOW_COLUMNS, tokens // 16)
    assert MIN_WINDOW_COLUMNS <= budget.window_columns <= budget.num_columns - SINK_COLUMNS
    assert budget.num_choices >= 0
    for start in (0, 1, 15, 16, 17, 4096):
        assert budget.first_window(start) >= SINK_COLUMNS


def test_a_sequence_that_was_emptied(model):
    """Guards the empty past: another first token leaves nothing, and what was remembered of it is forgotten."""
    with engine_on(model, **SELECTED) as engine:
        fresh = ask(engine, prompt(300, seed=2), durable=False, sequence_id=b"f" * 16)
        ask(engine, prompt(400), durable=False)
        again = ask(engine, prompt(300, seed=2), durable=False)
        assert again.usage.reused_tokens == 0
        assert again.token_ids == fresh.token_ids
        assert isinstance(engine._runner.selected._selector, Cascade)
        one = ask(engine, [7], durable=False)
        assert len(one.token_ids) == 8
