"""What a question's words name: columns that hold its rare tokens. No abstracts, no queries, no model.

Far beyond the trained window attention itself finds little of what a question asks about: of the turns that
answer questions to long chats, the 16 columns with most mass in all layers held one in fourteen, those with most
of the question's rare words two of three (docs/selection.md). A token weighs the square of its inverse document
frequency, once as the question's and once as the column's, as in a cosine of tf-idf vectors (Salton and Buckley,
"Term-weighting approaches in automatic text retrieval", 1988); a column is a document. A sentence seldom ends
with one, so neighbours lend each other half of their sum, and what follows a named column is named with it.
Refused: pairs of tokens beside single ones (no better), tokens without case and endings (hardly), the static
encoder's vectors (a twentieth better together, at 2 KB a column).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from edgekv.cache.leaf import LEAF_TOKENS

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from numpy.typing import NDArray

ASKED_TOKENS = 128  # what was said right before a short question is asked with it,
BEFORE = 0.125  # at an eighth of the weight: words of the question itself decide where it has any
MOST = 8  # columns, and as many that follow them
NEAR_BEST = 0.5  # of the best one's sum: less is chance


def named_columns(
    token_ids: Sequence[int],
    asked: Sequence[int],
    columns: range,
    most: int,
    words_of: Callable[[Sequence[int]], set[int]] = set,
) -> NDArray[np.int32]:
    """At most `most` of `columns` that hold what `asked` is about, ascending; none if they share no word.

    token_ids: of everything before `asked`, 16 to a column. A word in every second column or more names nothing,
    nor does what is no word: between two long messages a template's tokens were rarer than any name.
    """
    num_columns = len(columns)
    if num_columns == 0 or len(asked) == 0 or most == 0:
        return np.empty(0, np.int32)
    said = np.asarray(token_ids[columns.start * LEAF_TOKENS : columns.stop * LEAF_TOKENS], np.int64)
    assert len(said) == num_columns * LEAF_TOKENS, "whole columns"
    before = token_ids[len(token_ids) - max(0, ASKED_TOKENS - len(asked)) :]
    of_question = words_of(asked)
    words = np.asarray(sorted(of_question | words_of(before)), np.int64)
    if len(words) == 0:
        return np.empty(0, np.int32)
    weights = np.asarray([1.0 if word in of_question else BEFORE for word in words.tolist()])

    word = np.minimum(np.searchsorted(words, said), len(words) - 1)
    at = np.flatnonzero(words[word] == said)
    held = np.unique(word[at] * num_columns + at // LEAF_TOKENS)  # each word once in a column
    held_word, held_by = held // num_columns, held % num_columns
    frequency = np.bincount(held_word, minlength=len(words))
    rarity = np.log((num_columns + 1) / (frequency + 0.5))
    rarity[2 * frequency >= num_columns] = 0.0
    weights *= rarity**2
    sums = np.bincount(held_by, weights[held_word], minlength=num_columns)

    around = np.concatenate(([0.0], sums, [0.0]))
    smooth = sums + (around[:-2] + around[2:]) / 2
    best = np.argsort(-smooth, kind="stable")[:MOST]
    best = best[(smooth[best] > 0) & (smooth[best] >= NEAR_BEST * smooth[best[0]])]
    pairs = np.stack((best, best + 1), axis=1).flatten()
    pairs = pairs[pairs < num_columns]
    _, first = np.unique(pairs, return_index=True)
    named = pairs[np.sort(first)][:most]  # the best ones, where there is little room
    return (np.sort(named) + columns.start).astype(np.int32)
