"""How many columns one step reads, and which of them it reads anyway. Knows numbers of tokens and columns only."""

from __future__ import annotations

from dataclasses import dataclass

from edgekv.cache.leaf import LEAF_TOKENS

SINK_COLUMNS = 1
MIN_WINDOW_COLUMNS = 4
FEW_TOKENS = 64  # up to here a block reads what a single token would: a short message, a prompt's last tokens


@dataclass(frozen=True, slots=True)
class Budget:
    """Columns that one step reads: the sink, the window's, and those that are chosen."""

    num_columns: int
    window_columns: int

    @classmethod
    def of(cls, num_tokens: int, window_tokens: int) -> Budget:
        """Of `num_tokens` unique tokens, `window_tokens` of them (64 at least) for the window."""
        columns = max(SINK_COLUMNS + MIN_WINDOW_COLUMNS, num_tokens // LEAF_TOKENS)
        window = max(MIN_WINDOW_COLUMNS, window_tokens // LEAF_TOKENS)
        return cls(columns, min(columns - SINK_COLUMNS, window))

    @property
    def num_choices(self) -> int:
        """Columns that are chosen."""
        return self.num_columns - self.window_columns - SINK_COLUMNS

    def first_window(self, start: int) -> int:
        """The window's first column in a pass that begins at token `start`."""
        return max(SINK_COLUMNS, start // LEAF_TOKENS + 1 - self.window_columns)

    def reads_all(self, start: int) -> bool:
        """Whether everything before token `start` fits."""
        return self.first_window(start) - SINK_COLUMNS <= self.num_choices


@dataclass(frozen=True, slots=True)
class Budgets:
    """`decode`: of passes over few tokens; `far`: of the same where the sequence has passed the trained window;
    `prefill`: of blocks.

    Far behind, what is near tells more than what is chosen: a novel's tokens are likelier with a quarter for the
    window than with an eighth, which within the trained window is nearer to exact attention. With half of it a
    hidden number was less likely.
    """

    decode: Budget
    far: Budget
    prefill: Budget

    @classmethod
    def made(cls, num_tokens: int, prefill_tokens: int, window_tokens: int | None) -> Budgets:
        """Of as many unique tokens; `window_tokens` None: what suits each."""
        return cls(
            Budget.of(num_tokens, window_tokens or num_tokens // 8),
            Budget.of(num_tokens, window_tokens or num_tokens // 4),
            Budget.of(prefill_tokens, window_tokens or prefill_tokens * 2 // 3),
        )

    def of_pass(self, count: int, *, is_far: bool) -> Budget:
        """That of a pass over `count` tokens."""
        if count > FEW_TOKENS:
            return self.prefill
        return self.far if is_far else self.decode
