"""What a question names is read beyond the trained window: by its pass in every layer, and by its answer."""

import random
from collections import defaultdict

import pytest
import torch
from engine_fixtures import ask, engine_on
from gguf_writer import write_tiny_gguf

import edgekv_kernels
from edgekv.bench.inside import watch_choices
from edgekv.config import Config
from edgekv.engine.build import load_model
from edgekv.engine.selected import BESIDE_NAMED, SelectedAttention
from edgekv.errors import PolicyError
from edgekv.policies.selection import cascade
from edgekv.policies.selection.cascade import Cascade

BUDGET, WINDOW = 512, 128
FAR = {"attention": "auto", "budget": BUDGET, "prefill_budget": 256, "window": WINDOW}
COMMON = range(4, 20)
NAMES = {"first": (250, 20), "second": (251, 33)}  # a rare token and the column that holds it


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    """Trained on 256 tokens only."""
    path = write_tiny_gguf(tmp_path_factory.mktemp("m") / "m.gguf", num_layers=3, context=256)
    loaded = load_model(Config(threads=2), path, with_front=False)
    yield loaded
    loaded.front.close()


def said(count=896):
    """The same tokens in each column, which name nothing, and in one column each a rare one."""
    rng = random.Random(4)
    ids = [token for _ in range(count // 16) for token in rng.sample(COMMON, 16)]
    for token, column in NAMES.values():
        ids[16 * column + 5] = token
    return ids


def asked(*names):
    """A message of 20 tokens, so that all of it is one pass."""
    return [*COMMON, *COMMON[:4], *(NAMES[name][0] for name in names)][-20:]


def read(engine, ids, monkeypatch, **options):
    """(result, columns by the pass's number of tokens: one list for each layer)."""
    columns, begin, placed = defaultdict(list), SelectedAttention.begin, SelectedAttention._placed
    counts = []

    def begun(self, sequence, token_ids, arrivals):
        counts.append(len(token_ids))
        return begin(self, sequence, token_ids, arrivals)

    def found(self, this, layer, listed):
        columns[counts[-1]].append(listed.tolist())
        return placed(self, this, layer, listed)

    with monkeypatch.context() as patch:
        patch.setattr(SelectedAttention, "begin", begun)
        patch.setattr(SelectedAttention, "_placed", found)
        return ask(engine, ids, **options), columns


def test_a_question_reads_what_it_names(model, monkeypatch):
    """Guards a number that few layers looked for: each reads it, beside the sink and the latest columns only."""
    with engine_on(model, **FAR) as engine:
        ask(engine, said(), max_tokens=1, durable=False)
        _, columns = read(engine, said() + asked("first"), monkeypatch, max_tokens=1, durable=False)
    assert len(columns[20]) == 3, "a list for each layer"
    for listed in columns[20]:
        far = [column for column in listed if 0 < column < 56 - WINDOW // 16]
        assert {20, 21} <= set(far) <= {19, 20, 21, 22}
        assert listed[0] == 0
        assert listed[-WINDOW // 16 + 1 :] == list(range(56 - WINDOW // 16 + 1, 56))
        assert len(set(listed)) == len(listed) <= BUDGET // 16


def test_its_answer_reads_it_too(model):
    """Guards the digits: a first token that found the number was followed by ones that did not look there."""
    seen = []
    with engine_on(model, **FAR) as engine:
        ask(engine, said(), max_tokens=1, durable=False)
        watch_choices(engine, lambda attend, layer, _q: seen.append(attend.columns(layer).tolist()))
        use = ask(engine, said() + asked("first"), max_tokens=24, durable=False).attention
    assert len(seen) == 3 * 23
    for listed in seen:
        assert {20, 21} <= set(listed)
        assert len(set(listed)) == len(listed) <= BUDGET // 16
    shares = dict(use.most_read)
    assert shares[20 * 16] == shares[21 * 16] == 1
    assert use.mean_tokens <= BUDGET
    assert 0 < use.mass_kept <= 1


def test_each_question_names_its_own(model):
    """Guards a conversation: what an earlier question named was read by the answer to the next."""
    with engine_on(model, **FAR) as engine:
        ask(engine, said(), max_tokens=1, durable=False)
        shares = {}
        ids = said()
        for name in NAMES:
            ids += asked(name)
            result = ask(engine, ids, max_tokens=4, durable=False)
            ids += result.token_ids
            shares[name] = dict(result.attention.most_read)
    for name, other in (("first", "second"), ("second", "first")):
        assert shares[name][NAMES[name][1] * 16] == 1
        assert shares[name].get(NAMES[other][1] * 16, 0) < 1


def test_a_question_after_a_restart_reads_the_same(model, tmp_path, monkeypatch):
    """Guards resume: words need no abstract of what is on disk, so the pass reads what it would have before."""
    ids, found = said() + asked("first", "second"), {}
    with engine_on(model, tmp_path / "warm", **FAR) as engine:
        ask(engine, said(), max_tokens=1)
        result, columns = read(engine, ids, monkeypatch, max_tokens=8)
        found["warm"] = result.token_ids, columns[20]
    with engine_on(model, tmp_path / "restarted", **FAR) as engine:
        ask(engine, said(), max_tokens=1)
    with engine_on(model, tmp_path / "restarted", **FAR) as engine:
        result, columns = read(engine, ids, monkeypatch, max_tokens=8)
        found["restarted"] = result.token_ids, columns[20]
    assert len(found["warm"][1]) == 3
    assert found["restarted"] == found["warm"]
    assert all({20, 21, 33, 34} <= set(listed) for listed in found["warm"][1])


def test_within_the_trained_window_nothing_is_named(tmp_path_factory, monkeypatch):
    """Guards fidelity: where exact attention is the measure, a choice by words would only be farther from it."""
    path = write_tiny_gguf(tmp_path_factory.mktemp("m") / "m.gguf", num_layers=3, context=2048)
    monkeypatch.setattr(Cascade, "named", lambda *_: pytest.fail("asked within the trained window"))
    loaded = load_model(Config(threads=2), path, with_front=False)
    with engine_on(loaded, **(FAR | {"attention": "selected"})) as engine:
        assert ask(engine, said() + asked("first"), max_tokens=4, durable=False).exactness == "selected"
    loaded.front.close()


@pytest.mark.parametrize(
    "wrong",
    [[0], [21, 20], [20, 20], [20, 9999], [-3], [[20], [21]], list(range(1, 20))],
    ids=lambda wrong: f"{wrong}",
)
def test_a_method_that_names_wrongly_is_one_error(model, monkeypatch, wrong):
    """Guards the pools: a column that is not there is memory of another conversation. What follows is served."""
    ids = said() + asked("first")
    with engine_on(model, **FAR) as engine:
        ask(engine, said(), max_tokens=1, durable=False)
        with monkeypatch.context() as patch:
            patch.setattr(Cascade, "named", lambda *_: torch.tensor(wrong, dtype=torch.int32))
            with pytest.raises(PolicyError, match="selection method Cascade failed") as caught:
                ask(engine, ids, max_tokens=4, durable=False)
        assert "\n" not in str(caught.value)
        assert len(ask(engine, ids, max_tokens=4, durable=False).token_ids) == 4


def test_where_everything_fits_nothing_is_named(model, monkeypatch):
    """Guards a budget larger than the conversation: naming dropped two thirds of what could have been read."""
    monkeypatch.setattr(Cascade, "named", lambda *_: pytest.fail("asked although all fits"))
    with engine_on(model, **(FAR | {"budget": 2048, "prefill_budget": 2048})) as engine:
        ask(engine, said(), max_tokens=1, durable=False)
        use = ask(engine, said() + asked("first"), max_tokens=6, durable=False).attention
    assert use.mean_tokens > 896


def test_the_same_question_asked_again_names_the_same(model):
    """Guards an answer made again: where the prompt is a token longer than its columns, only that is run."""
    ids = (said() + asked("first") + [*COMMON, 4])[: 896 + 33]
    with engine_on(model, **FAR) as engine:
        ask(engine, said(), max_tokens=1, durable=False)
        first = ask(engine, ids, max_tokens=4, durable=False)
        again = ask(engine, ids, max_tokens=4, durable=False)
    assert again.usage.reused_tokens == len(ids) - 1
    for result in (first, again):
        assert dict(result.attention.most_read)[20 * 16] == 1


def test_the_latest_are_a_quarter_of_the_budget_there(model, monkeypatch):
    """Guards the default: an eighth within the trained window, a quarter beyond; an option counts for both."""
    options = FAR | {"window": None, "budget": 512}
    for given, wanted in ((None, 8), (320, 20)):
        with engine_on(model, **(options | {"window": given})) as engine:
            ask(engine, said(), max_tokens=1, durable=False)
            assert engine._runner.selected.window_columns(200) == (4 if given is None else 20)
            _, columns = read(engine, said() + asked("first"), monkeypatch, max_tokens=1, durable=False)
            assert engine._runner.columns_to_restore(900) == wanted
        assert all(listed[-wanted + 1 :] == list(range(57 - wanted, 56)) for listed in columns[20])
        assert all(57 - wanted - 1 not in listed for listed in columns[20])


def test_few_others_are_read_beside(model):
    """Guards the digits once more: what attention chooses far away counts against what was named."""
    seen = []
    with engine_on(model, **(FAR | {"budget": 512, "window": 64})) as engine:
        ask(engine, said(), max_tokens=1, durable=False)
        watch_choices(engine, lambda attend, layer, _q: seen.append(int(attend.counts[layer])))
        ask(engine, said() + asked("first"), max_tokens=8, durable=False)
    assert set(seen) == {BESIDE_NAMED}


@pytest.mark.parametrize("form", ["auto", "reference"])
def test_an_answer_across_the_trained_window(tmp_path_factory, form):
    """Guards the table of what a layer keeps: the window grows there, so the columns to choose from end earlier
    than when they were listed; the plain form raised.
    """
    path = write_tiny_gguf(tmp_path_factory.mktemp("m") / "m.gguf", num_layers=3, context=1024)
    loaded = load_model(Config(threads=2), path, with_front=False)
    options = FAR | {"attention": "selected", "window": None}
    with edgekv_kernels.forced(form), engine_on(loaded, **options) as engine:
        engine._runner.selected._selector = Cascade(max_candidates=24, kept=24)
        for count in (1004, 1007):
            result = ask(engine, said(count + 16)[:count], max_tokens=48, durable=False)
            assert len(result.token_ids) == 48
            assert result.attention.mean_tokens <= BUDGET
    loaded.front.close()


def test_an_answer_goes_by_nodes_until_its_layers_scan(model, monkeypatch):
    """Guards the time of a first token, in both forms: all layers scanned. And the next answer's quality, where
    nothing is named: it ranks all columns again.
    """
    monkeypatch.setattr(cascade, "NODES_BESIDE", 2)
    by_nodes, choosing = [], Cascade.choosing

    def chosen(self, *args):
        found = choosing(self, *args)
        by_nodes.append(found.nodes is not None)
        assert found.nodes is None or found.nodes.shape[:2] == (3, len(found.keys[0]) // 8)
        return found

    monkeypatch.setattr(Cascade, "choosing", chosen)
    attended = []
    for form in ("auto", "reference"):
        with edgekv_kernels.forced(form), engine_on(model, **(FAR | {"budget": 512, "window": 64})) as engine:
            engine._runner.selected._selector = Cascade(max_candidates=24, kept=24)
            ids = said() + asked("first")
            ask(engine, said(), max_tokens=1, durable=False)
            by_nodes.clear()
            first = ask(engine, ids, max_tokens=8, durable=False)
            assert by_nodes
            assert all(by_nodes)
            assert dict(first.attention.most_read)[20 * 16] == 1
            by_nodes.clear()
            nothing = [*ids, *first.token_ids, *said()[-150:], *asked()]
            second = ask(engine, nothing, max_tokens=4, durable=False)
            assert by_nodes
            assert not any(by_nodes)
        attended.append((first.attention.mean_tokens, second.attention.mean_tokens))
    assert attended[0] == attended[1]
