"""Widgets: data goes down as arguments, what happened goes up as messages in the past tense."""
