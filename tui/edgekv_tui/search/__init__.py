"""Finding words in all kept conversations, in memory only."""
