"""Which leaves a step reads besides sink and window: one method, one file. Abstracts in, columns out."""
