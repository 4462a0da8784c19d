"""Reading bytes from the drive: one protocol, one module per way of doing it."""
