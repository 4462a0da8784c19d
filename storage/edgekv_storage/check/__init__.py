"""A second reader of docs/format.md, sharing no code with the first: finds what is not as it was written."""
