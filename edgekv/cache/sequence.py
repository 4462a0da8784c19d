"""One token stream whose KV is cached: its ids, where its columns lie, how much of it is on disk."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from edgekv.cache.leaf import LEAF_TOKENS

if TYPE_CHECKING:
    from collections.abc import Iterable

    from edgekv.cache.directory import Directory


@dataclass(slots=True)
class Sequence:
    """`token_ids` are exactly the tokens whose KV exists; the last column may be unfinished.

    `num_written` columns from the start are on disk. `keys` are the chain keys of the full columns, made
    when first needed. `last_used` counts requests, not seconds: only the order matters. The first
    `num_exact` tokens were made under exact attention, all others depend on a selection. `num_cuts` counts
    how often tokens were cut off: what was remembered of them is void.
    """

    id: bytes
    durable: bool
    directory: Directory
    token_ids: list[int] = field(default_factory=list)
    keys: list[bytes] = field(default_factory=list)
    num_written: int = 0
    last_used: int = 0
    num_exact: int = 0
    num_cuts: int = 0

    @property
    def num_tokens(self) -> int:
        """Positions with KV."""
        return len(self.token_ids)

    @property
    def num_full(self) -> int:
        """Columns that will not change any more."""
        return self.num_tokens // LEAF_TOKENS

    @property
    def is_exact(self) -> bool:
        """Whether every token was made under exact attention."""
        return self.num_exact == self.num_tokens

    def append(self, token_ids: Iterable[int], *, exactly: bool) -> None:
        """Their KV exists now; `exactly`: everything before them was attended."""
        still = exactly and self.is_exact
        self.token_ids.extend(token_ids)
        if still:
            self.num_exact = self.num_tokens

    def shorten(self, num_tokens: int) -> None:
        """Forget tokens from `num_tokens` on; slots of dropped columns must have been given back."""
        self.num_cuts += num_tokens < self.num_tokens
        del self.token_ids[num_tokens:]
        del self.keys[num_tokens // LEAF_TOKENS :]
        self.num_written = min(self.num_written, num_tokens // LEAF_TOKENS)
        self.num_exact = min(self.num_exact, num_tokens)
        self.directory.truncate(-(-num_tokens // LEAF_TOKENS))


def common_prefix(left: list[int], right: list[int]) -> int:
    """How many leading ids are equal."""
    limit = min(len(left), len(right))
    if left[:limit] == right[:limit]:
        return limit
    return next(index for index in range(limit) if left[index] != right[index])
