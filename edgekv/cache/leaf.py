"""The size of things: a leaf is 16 tokens of one layer; a column is the leaves of those tokens in every layer.

Knows shapes and bytes only. Column is our word for what is computed, demoted and written together: all
layers of the same 16 tokens. Selection (which may differ per layer) works on leaves.
"""

from __future__ import annotations

from dataclasses import dataclass

LEAF_TOKENS = 16
NODE_COLUMNS = 8
"""Columns of a node, the lowest level of the chunk tree above leaves."""


@dataclass(frozen=True, slots=True)
class LeafShape:
    """K and V of one leaf: `[2, num_kv_heads, LEAF_TOKENS, head_dim]`, contiguous, `value_bytes` each."""

    num_layers: int
    num_kv_heads: int
    head_dim: int
    value_bytes: int = 2

    @property
    def leaf_bytes(self) -> int:
        """Bytes of one leaf in one layer."""
        return 2 * self.num_kv_heads * LEAF_TOKENS * self.head_dim * self.value_bytes

    @property
    def column_bytes(self) -> int:
        """Bytes of the same 16 tokens in all layers."""
        return self.num_layers * self.leaf_bytes


def num_columns(num_tokens: int) -> int:
    """Columns that hold `num_tokens` tokens, the last one possibly unfinished."""
    return -(-num_tokens // LEAF_TOKENS)
