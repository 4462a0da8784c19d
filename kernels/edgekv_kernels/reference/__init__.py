"""The slow twins: every operation in plain torch, float32 inside, written to be read.

They know the formulas and nothing of speed; the other forms are tested against the same bounds.
"""
