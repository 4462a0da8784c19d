"""The eviction policy: pure decisions, and what it saves against giving up the longest unused."""

from __future__ import annotations

import random

from edgekv_storage.space.eviction import Piece, PrefillCost, choose

HOUR = 3_600_000_000_000
COST = PrefillCost()


def _chain(sequence: int, count: int, used_ns: int, num_bytes: int = 100) -> list[Piece]:
    first = sequence * 100
    return [
        Piece(
            first + i,
            bytes([sequence]),
            num_bytes,
            COST.seconds(i * 3000, (i + 1) * 3000),
            used_ns,
            frozenset({first + i + 1} if i + 1 < count else ()),
        )
        for i in range(count)
    ]


def test_the_cost_of_later_tokens_is_higher():
    """Guards the model of cost: 3,000 tokens at the end of a long text take longer than at its start."""
    assert COST.seconds(30_000, 33_000) > 2 * COST.seconds(0, 3000)
    parts = COST.seconds(0, 1000) + COST.seconds(1000, 5000)
    assert abs(parts - COST.seconds(0, 5000)) < 1e-9


def test_equal_pieces_go_by_their_last_use():
    """Guards recency, and that nothing goes beyond what is needed."""
    pieces = [*_chain(1, 2, 5 * HOUR), *_chain(2, 2, 2 * HOUR), *_chain(3, 2, 9 * HOUR)]
    assert choose(pieces, 100) == [201]
    assert choose(pieces, 101) == [201, 200]
    assert choose(pieces, 300) == [200, 201, 101]
    assert choose(pieces, 100, keep=[bytes([2])]) == [101]


def test_what_cannot_be_enough_touches_nothing():
    """Guards other conversations against being dropped for nothing."""
    pieces = _chain(1, 3, 0)
    assert choose(pieces, 301) == []
    assert choose(pieces, 1, keep=[bytes([1])]) == []
    assert choose([], 1) == []


def test_a_short_text_used_a_little_later_goes_before_a_long_one():
    """Guards cost: the end of a long conversation is the most expensive thing to compute again."""
    long, short = _chain(1, 12, 0), _chain(2, 1, HOUR)
    assert choose([*long, *short], 100) == [200]


def test_a_clock_that_jumped_does_not_break_the_order():
    """Guards ages: one use dated ten years ahead made everything else equally old, or negative."""
    future = 10 * 365 * 24 * HOUR
    pieces = [*_chain(1, 1, future), *_chain(2, 1, 3 * HOUR), *_chain(3, 1, 2 * HOUR)]
    assert choose(pieces, 100) == [300]
    assert choose([*_chain(1, 1, -HOUR), *_chain(2, 1, 0)], 100) == [100]


def _replay(policy: str, seed: int) -> float:
    """Seconds of prefill that the store saved over a trace of conversations coming back."""
    rng = random.Random(seed)
    lengths = [min(30, 1 + int(rng.paretovariate(0.9))) for _ in range(60)]  # segments; few are long
    popularity = [1 / (1 + rank) ** 0.8 for rank in range(60)]
    rng.shuffle(popularity)
    kept: dict[int, int] = {}  # conversation -> segments that are there
    used: dict[int, int] = {}
    saved, capacity = 0.0, sum(lengths) // 2
    for request in range(1500):
        now = request * HOUR // 4
        chat = rng.choices(range(60), popularity)[0]
        there = kept.get(chat, 0)
        saved += COST.seconds(0, there * 3000)
        kept[chat], used[chat] = lengths[chat], now
        excess = sum(kept.values()) - capacity
        if excess > 0:
            pieces = [p for c, n in kept.items() if n for p in _chain(c, n, used[c], 1)]
            if policy == "ours":
                gone = choose(pieces, excess, keep=[bytes([chat])])
            else:
                order = sorted((p for p in pieces if p.sequence_id != bytes([chat])), key=_oldest_tail_first)
                gone = [p.segment for p in order[:excess]]
            for segment in gone:
                kept[segment // 100] -= 1
    return saved


def _oldest_tail_first(piece: Piece) -> tuple[int, int]:
    return piece.used_ns, -piece.segment


def test_it_saves_more_than_giving_up_the_longest_unused():
    """Guards the policy's reason to exist: seconds saved over traces with a few long conversations."""
    ratios = [_replay("ours", seed) / _replay("lru", seed) for seed in range(3)]
    assert min(ratios) >= 1.0
    assert sum(ratios) / 3 > 1.02, ratios
