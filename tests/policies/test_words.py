"""What a question's words name: values on texts small enough to count by hand."""

import random
import time

import numpy as np
import pytest

from edgekv.bench.text import BUNDLED, load_text
from edgekv.models.catalog import bundled_model
from edgekv.models.config import ModelConfig
from edgekv.models.gguf import open_gguf
from edgekv.models.tokenizer import Tokenizer
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
    found = named_columns(ids, [COMMON, NAME, NUMBER], range(1, 480), 99)
    assert {200, 201} <= set(found.tolist())
    assert set(found.tolist()) <= {199, 200, 201, 202}, "neighbours at most: a common word names nothing"


def test_words_on_both_sides_of_an_edge_belong_together():
    """Guards sentences that do not end with a column: two halves beside each other beat either word alone."""
    ids = said(500)
    ids[16 * 201 - 1], ids[16 * 201] = NAME, NUMBER
    for column in range(300, 470, 10):
        ids[16 * column + 3] = NAME
    found = named_columns(ids, [NAME, NUMBER], range(1, 480), 99).tolist()
    assert found[:2] == [200, 201]
    assert not set(found) & set(range(300, 480)), "a word alone weighs less than half of both together"


def test_a_rare_word_beats_several_frequent_ones():
    """Guards the weight of rarity: summed plainly, five words of every third column outweighed a name."""
    ids = said(300)
    for column in range(0, 300, 3):
        ids[16 * column + 2 : 16 * column + 7] = range(700, 705)
    ids[16 * 100 + 8] = NAME  # 100 is no third column
    found = named_columns(ids, [700, 701, 702, 703, 704, NAME], range(1, 290), 99)
    assert 100 in found


def test_columns_are_ascending_whole_and_of_those_to_choose_from():
    """Guards the contract: what is attended anyway must not be named, and each column once."""
    ids = said(60)
    for column in range(60):
        ids[16 * column + 1 + column % 15] = NAME if column % 4 == 0 else NUMBER
    for columns in (range(1, 60), range(7, 31), range(5, 6)):
        found = named_columns(ids, [NAME, NUMBER, 11, 12], columns, 99)
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
    assert named_columns([COMMON] * num_tokens, asked, columns, 99).size == 0


def test_what_was_said_before_a_short_question_counts_less():
    """Guards "and when was that?" and an answer made again, whose pass has a few tokens of the template only: they
    name what the words before them do. Words of the question itself go first.
    """
    quiet = [COMMON] * (16 * 100)
    for column, word in ((20, NAME), (60, NUMBER)):
        quiet[16 * column + 4] = word
    ids = [*quiet, NAME, COMMON, COMMON]
    asked_alone = named_columns(ids, [COMMON, COMMON], range(1, 90), 99).tolist()
    assert 20 in asked_alone
    assert 60 not in asked_alone
    assert BEFORE < 0.5
    asked_for_another = named_columns(ids, [NUMBER, COMMON], range(1, 90), 99).tolist()
    assert 60 in asked_for_another
    assert 20 not in asked_for_another


def test_only_the_cascade_goes_by_words():
    """Guards comparisons: the papers' methods choose as their papers say."""
    ids = said(100)
    ids[16 * 50 + 3] = NAME
    for name, made in SELECTORS.items():
        found = made().named(ids, [NAME, 1], range(1, 90), 9).tolist()
        assert (50 in found) == (name == "cascade"), name


def test_a_question_forgets_what_earlier_ones_found():
    """Guards the answer's first token: it would search what another question's scan left."""
    cascade = Cascade()
    cascade._make_room(2, 8)
    cascade._scanned[:, :3] = 1
    cascade._kept[:, :3] = 1
    ids = [COMMON] * 1600
    ids[16 * 50 + 3] = NAME
    assert len(cascade.named(ids, [12345], range(1, 90), 9)) == 0
    assert int(cascade._scanned[0, 0]) == 1, "nothing named: its pass scans by itself"
    cascade.named(ids, [NAME], range(1, 90), 9)
    assert not cascade._scanned.any()
    assert not cascade._kept.any()


def test_a_million_tokens_take_no_loop():
    """Guards the question's time: a pass over the tokens per word took seconds."""
    ids = np.random.default_rng(0).integers(10, 40_000, 1_000_000).tolist()
    begun = time.process_time()
    assert len(named_columns(ids, ids[500_000:500_064], range(1, 62_000), 99))
    assert time.process_time() - begun < 2.0


def test_where_there_is_little_room_the_best_are_named():
    """Guards small budgets: cut by their place, the first ones were read and the best one was not."""
    ids = [COMMON] * 1600
    for column in (5, 20, 35):
        ids[16 * column + 3] = NAME
    ids[16 * 70 + 3 : 16 * 70 + 5] = [NAME, NUMBER]
    assert named_columns(ids, [NAME, NUMBER], range(1, 90), 2).tolist() == [70, 71]
    assert named_columns(ids, [NAME, NUMBER], range(1, 90), 1).tolist() == [70]
    assert named_columns(ids, [NAME, NUMBER], range(1, 90), 0).size == 0


def test_what_is_no_word_names_nothing():
    """Guards long messages: between two of them the template's tokens were rarer than what was asked for, and the
    pass read nothing else.
    """
    ids = said(500)
    for column in (100, 300):
        ids[16 * column + 4 : 16 * column + 8] = [800, 801, 802, 803]
    ids[16 * 200 + 7] = NAME
    asked = [803, 800, 801, COMMON, NAME, 802, 800]
    with_all = named_columns(ids, asked, range(1, 480), 99).tolist()
    assert 100 in with_all
    assert 200 not in with_all
    found = named_columns(ids, asked, range(1, 480), 99, lambda ids: set(ids) - {800, 801, 802, 803}).tolist()
    assert 200 in found
    assert 100 not in found


@pytest.fixture(scope="module")
def tokenizer():
    path = bundled_model()
    if path is None:
        pytest.skip("the bundled model is not installed")
    file = open_gguf(path)
    loaded = Tokenizer(file, ModelConfig.from_gguf(file))
    yield loaded
    loaded.close()


@pytest.mark.parametrize(
    ("fact", "question"),
    [
        ("In spring Clara moved to Lisbon. ", "Where did Clara move?"),
        ("The dentist is on the ninth of March. ", "When do I have to see the dentist?"),
        ("I am allergic to hazelnuts. ", "What am I allergic to?"),
    ],
)
def test_a_fact_between_long_messages(tokenizer, fact, question):
    """Guards pasted documents: what stands between two messages is rarer than any name, and named first."""
    text = load_text(bundled_model(), None, BUNDLED)
    third = len(text.ids) // 3
    between = tokenizer.encode(
        "<|im_end|>\n<|im_start|>assistant\nThanks.<|im_end|>\n<|im_start|>user\n", special=True
    )
    ids, places = [], []
    for part in range(3):
        ids += between + text.ids[part * third : (part + 1) * third]
        if part == 1:
            ids = ids[: len(ids) - third // 2]
            places = range(len(ids) // 16, (len(ids) + len(fact) // 4) // 16 + 1)
            ids += (
                tokenizer.encode(fact, special=False)
                + text.ids[part * third + third // 2 : (part + 1) * third]
            )
    ids += tokenizer.encode("<|im_end|>\n<|im_start|>assistant\nThanks.", special=True)
    asked = tokenizer.encode(
        f"<|im_end|>\n<|im_start|>user\n{question}<|im_end|>\n<|im_start|>assistant\n", special=True
    )
    found = named_columns(ids, asked, range(1, len(ids) // 16 - 8), 16, tokenizer.words)
    assert set(found.tolist()) & set(places)
