"""Segment files: their bytes, the records in them, and what a crash leaves of them."""
