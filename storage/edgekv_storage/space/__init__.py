"""Quota and free space: what is given up, what is copied together, what is told about it."""
