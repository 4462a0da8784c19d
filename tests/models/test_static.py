"""Static embeddings against the same sums in float64."""

import numpy as np
import pytest
import torch

from edgekv.errors import ConfigError
from edgekv.models import static
from edgekv.models.static import SMOOTHING, StaticEncoder

NUM_TOKENS, WIDTH = 300, 24


class Table:
    """What the encoder needs of the embedding matrix."""

    shape = (NUM_TOKENS, WIDTH)

    def __init__(self):
        made = np.random.default_rng(3)
        self.data = (
            made.standard_normal(self.shape).astype(np.float32) + 2.0
        )  # as those of models: far from 0

    def rows(self, ids):
        return torch.from_numpy(self.data)[ids]


@pytest.fixture
def table():
    return Table()


def reference(table, token_ids):
    data = table.data.astype(np.float64)
    ranks = np.arange(1, NUM_TOKENS + 1)
    weights = SMOOTHING / (SMOOTHING + 1 / (ranks * (np.log(NUM_TOKENS) + np.euler_gamma)))
    total = sum(weights[id_] * (data[id_] - data.mean(0)) for id_ in token_ids)
    return total / np.linalg.norm(total)


@pytest.mark.parametrize("rows_at_once", [7, 4096])
def test_vectors_are_weighted_means_about_the_common_one(table, monkeypatch, rows_at_once):
    """Guards the formula, tokens that come twice, and long texts, which are added up in parts."""
    monkeypatch.setattr(static, "ROWS_AT_ONCE", rows_at_once)
    texts = [[0], [299], [5, 5, 7], list(range(0, 300, 2)) * 3]
    found = StaticEncoder(table, torch.device("cpu")).encode(texts)
    assert found.dtype == np.float32
    for vector, token_ids in zip(found, texts, strict=True):
        np.testing.assert_allclose(vector, reference(table, token_ids), atol=2e-5)


def test_frequent_words_weigh_little(table):
    """Guards the use of it: two texts that share only what every text has are less alike than two on one thing."""
    common, one, other = [1, 2, 3], [200, 201], [250, 251]
    vectors = StaticEncoder(table, torch.device("cpu")).encode([common + one, one, common + other])
    alike = vectors @ vectors.T
    assert alike[0, 1] > 0.9
    assert alike[0, 2] < 0.5


@pytest.mark.parametrize("wrong", [-1, NUM_TOKENS])
def test_ids_beyond_the_vocabulary_are_refused(table, wrong):
    """Guards against reading other memory than the table's."""
    with pytest.raises(
        ConfigError, match=f"token {wrong} is not in this model's vocabulary: ids are 0 to 299"
    ):
        StaticEncoder(table, torch.device("cpu")).encode([[1, wrong]])
