"""The store: finds, reads and appends leaves over all segments of a data directory."""
