"""What a question's words name: values on texts small enough to count by hand."""

import random
import time

import numpy as np
import pytest

from edgekv.policies.selection.cascade import Cascade
from edgekv.policies.selection.methods import SELECTORS
from edgekv.policies.selection.words import BEFORE, MOST, named_columns

NAME, NUMBER, COMMON = 901, 902, 5


def said(num_columns, seed=0):
    """Tokens 10 to 99 at random, and a common one in each column."""
    rng = random.Random(seed)
    ids = [rng.randrange(10, 100) for _ in range(16 * num_columns)]
    ids[::16] = [COMMON] * num_columns
    return ids


def test_the_place_that_holds_the_words_comes_first():
    """Guards the ranking: one place among 500 that says the rare words, and what follows it; nothing else."""
    ids = said(500)
    ids[16 * 200 + 7], ids[16 * 200 + 9] = NAME, NUMBER
    found = named_columns(ids, [COMMON, NAME, NUMBER], range(1, 480))
    assert {200, 201} <= set(found.tolist())
    assert set(found.tolist()) <= {199, 200, 201, 202}, "neighbours at most: a common word names nothing"


def test_words_on_both_sides_of_an_edge_belong_together():
    """Guards sentences that do not end with a column: two halves beside each other beat either word alone."""
    ids = said(500)
    ids[16 * 201 - 1], ids[16 * 201] = NAME, NUMBER
    for column in range(300, 470, 10):
        ids[16 * column + 3] = NAME
    found = named_columns(ids, [NAME, NUMBER], range(1, 480)).tolist()
    assert found[:2] == [200, 201]
    assert not set(found) & set(range(300, 480)), "a word alone weighs less than half of both together"


def test_a_rare_word_beats_several_frequent_ones():
    """Guards the weight of rarity: summed plainly, five words of every third column outweighed a name."""
    ids = said(300)
    for column in range(0, 300, 3):
        ids[16 * column + 2 : 16 * column + 7] = range(700, 705)
    ids[16 * 100 + 8] = NAME  # 100 is no third column
    found = named_columns(ids, [700, 701, 702, 703, 704, NAME], range(1, 290))
    assert 100 in found


def test_columns_are_ascending_whole_and_of_those_to_choose_from():
    """Guards the contract: what is attended anyway must not be named, and each column once."""
    ids = said(60)
    for column in range(60):
        ids[16 * column + 1 + column % 15] = NAME if column % 4 == 0 else NUMBER
    for columns in (range(1, 60), range(7, 31), range(5, 6)):
        found = named_columns(ids, [NAME, NUMBER, 11, 12], columns)
        assert found.dtype == np.int32
        assert (np.diff(found) > 0).all()
        assert set(found.tolist()) <= set(columns)
        assert len(found) <= 2 * MOST


@pytest.mark.parametrize(
    ("num_tokens", "asked", "columns"),
    [
        (640, [NAME, NUMBER], range(1, 30)),  # said nowhere
        (640, [COMMON], range(1, 30)),  # said everywhere
        (640, [], range(1, 30)),
        (640, [NAME], range(1, 1)),
        (0, [NAME], range(1, 1)),
    ],
)
def test_nothing_is_named(num_tokens, asked, columns):
    """Guards a question that shares no rare word with what was said: its pass is then as any other."""
    assert named_columns([COMMON] * num_tokens, asked, columns).size == 0


def test_what_was_said_before_a_short_question_counts_less():
    """Guards "and when was that?" and an answer made again, whose pass has a few tokens of the template only: they
    name what the words before them do. Words of the question itself go first.
    """
    quiet = [COMMON] * (16 * 100)
    for column, word in ((20, NAME), (60, NUMBER)):
        quiet[16 * column + 4] = word
    ids = [*quiet, NAME, COMMON, COMMON]
    asked_alone = named_columns(ids, [COMMON, COMMON], range(1, 90)).tolist()
    assert 20 in asked_alone
    assert 60 not in asked_alone
    assert BEFORE < 0.5
    asked_for_another = named_columns(ids, [NUMBER, COMMON], range(1, 90)).tolist()
    assert 60 in asked_for_another
    assert 20 not in asked_for_another


def test_only_the_cascade_goes_by_words():
    """Guards comparisons: the papers' methods choose as their papers say."""
    ids = said(100)
    ids[16 * 50 + 3] = NAME
    for name, made in SELECTORS.items():
        found = made().named(ids, [NAME, 1], range(1, 90)).tolist()
        assert (50 in found) == (name == "cascade"), name


def test_a_question_forgets_what_earlier_ones_found():
    """Guards the answer's first token: it would search what another question's scan left."""
    cascade = Cascade()
    cascade._make_room(2, 8)
    cascade._scanned[:, :3] = 1
    cascade._kept[:, :3] = 1
    ids = [COMMON] * 1600
    ids[16 * 50 + 3] = NAME
    assert len(cascade.named(ids, [12345], range(1, 90))) == 0
    assert int(cascade._scanned[0, 0]) == 1, "nothing named: its pass scans by itself"
    cascade.named(ids, [NAME], range(1, 90))
    assert not cascade._scanned.any()
    assert not cascade._kept.any()


def test_a_million_tokens_take_no_loop():
    """Guards the question's time: a pass over the tokens per word took seconds."""
    ids = np.random.default_rng(0).integers(10, 40_000, 1_000_000).tolist()
    begun = time.process_time()
    assert len(named_columns(ids, ids[500_000:500_064], range(1, 62_000)))
    assert time.process_time() - begun < 2.0
