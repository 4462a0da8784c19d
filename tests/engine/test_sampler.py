"""The sampler against a plain numpy account of each filter."""

import numpy as np
import pytest
import torch

from edgekv.engine.request import Sampling
from edgekv.engine.sampler import Sampler, _draw, _filtered
from edgekv.errors import ConfigError


def reference(logits, *, top_k=0, top_p=1.0, min_p=0.0):
    """Ids that survive, by sorting the whole vocabulary in float64."""
    order = np.argsort(-logits.astype(np.float64), kind="stable")
    if top_k:
        order = order[:top_k]
    if top_p < 1:
        weights = np.exp(logits[order].astype(np.float64) - logits.max())
        reached = np.cumsum(weights / weights.sum())
        order = order[: int(np.searchsorted(reached, top_p)) + 1]
    if min_p:
        order = order[logits[order] >= logits[order].max() + np.log(min_p)]
    return set(order.tolist())


@pytest.mark.parametrize("vocab", [7, 300, 5000])
@pytest.mark.parametrize(
    "options",
    [
        {"top_k": 5},
        {"top_p": 0.9},
        {"top_p": 0.05},
        {"min_p": 0.1},
        {"top_k": 40, "top_p": 0.8, "min_p": 0.05},
        {"top_k": 10_000, "top_p": 0.999},
    ],
)
def test_filters_keep_what_the_reference_keeps(vocab, options):
    """Guards the order of the filters and the off-by-one at the edge of the nucleus."""
    logits = np.random.default_rng(vocab).normal(0, 2, vocab).astype(np.float32)
    values, ids = _filtered(torch.from_numpy(logits), Sampling(**options))
    kept = range(vocab) if ids is None else ids.tolist()
    assert set(kept) == reference(logits, **options)
    assert values.tolist() == [float(logits[i]) for i in kept]


def test_nucleus_wider_than_the_shortcut_is_complete():
    """Guards the shortcut that sorts only the 1,024 likeliest: a flat distribution needs more."""
    _, ids = _filtered(torch.zeros(4096), Sampling(top_p=0.5))
    assert ids is not None
    assert abs(ids.numel() - 2048) <= 1


def test_temperature_zero_is_greedy_and_needs_no_random_number():
    """Guards greedy decoding against a seed changing it."""
    logits = torch.tensor([0.1, 3.0, 2.9])
    assert [Sampler(Sampling(temperature=0, seed=seed)).sample(logits) for seed in range(5)] == [1] * 5


def test_draws_follow_the_softmax():
    """Guards the inverted distribution (a shifted index would favour the neighbour)."""
    logits = torch.log(torch.tensor([0.5, 0.3, 0.2]))
    sampler = Sampler(Sampling(temperature=1.0, seed=1))
    counts = np.bincount([sampler.sample(logits) for _ in range(4000)], minlength=3) / 4000
    assert np.abs(counts - [0.5, 0.3, 0.2]).max() < 0.03


def test_draw_at_the_edges():
    """Guards the ends of the unit interval: 0 must skip impossible ids, just below 1 must stay inside."""
    values = torch.tensor([float("-inf"), 0.0, 0.0])
    assert _draw(values, 0.0) == 1
    assert _draw(values, np.nextafter(1.0, 0)) == 2


def test_temperature_spreads_only_what_the_filters_left():
    """Guards the order: temperature before top-k would not change it, before min-p it would."""
    sampler = Sampler(Sampling(temperature=50.0, min_p=0.5, seed=3))
    logits = torch.tensor([5.0, 4.9, 0.0, 0.0, 0.0])
    assert {sampler.sample(logits) for _ in range(50)} == {0, 1}


def test_same_seed_same_draws_other_seed_other_draws():
    """Guards reproducibility."""
    rows = torch.from_numpy(np.random.default_rng(0).normal(0, 1, (40, 100)).astype(np.float32))

    def draws(seed):
        sampler = Sampler(Sampling(temperature=1.0, seed=seed))
        return [sampler.sample(row) for row in rows]

    assert draws(7) == draws(7)
    assert draws(7) != draws(8)


def test_repetition_penalty_divides_positive_and_multiplies_negative_logits():
    """Guards the sign rule: dividing a negative logit would make a repeated token likelier."""
    sampler = Sampler(Sampling(temperature=0, repetition_penalty=2.0), context_ids=[0, 0, 1])
    logits = torch.tensor([3.0, -1.0, 1.0, 0.9])
    assert sampler._penalized(logits).tolist() == pytest.approx([1.5, -2.0, 1.0, 0.9])
    assert logits.tolist() == pytest.approx([3.0, -1.0, 1.0, 0.9]), "the caller's logits are not changed"
    sampler.accept(2)
    assert sampler._penalized(logits).tolist() == pytest.approx([1.5, -2.0, 0.5, 0.9])


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("temperature", -0.1),
        ("temperature", float("nan")),
        ("top_k", -1),
        ("top_p", 0.0),
        ("top_p", 1.1),
        ("min_p", -0.1),
        ("repetition_penalty", 0.0),
    ],
)
def test_values_out_of_range_are_refused_by_name(name, value):
    """Guards against a nonsense option that silently does something."""
    with pytest.raises(ConfigError, match=name):
        Sampling(**{name: value})
