"""Pure bookkeeping of KV on numpy arrays: leaves, slots, the directory, the ledger. No torch, no I/O."""
