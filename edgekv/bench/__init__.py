"""`edgekv bench`: what this machine can do, what edgekv reaches, and what a peer reaches in the same run.

Figures are comparable only within one run: every command measures the machine's limits beside its own rows.
"""
