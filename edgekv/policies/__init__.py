"""Decisions about KV: what to keep where, what to demote. Ids and sizes in, ids out; no I/O, no tensors of KV."""
