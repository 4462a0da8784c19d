"""The master key and the conversation keys it wraps: where they lie, how they are opened, changed and destroyed."""
