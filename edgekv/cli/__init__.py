"""The command line: arguments to Config to Runtime, and what comes back to text or JSON."""

from edgekv.cli.main import main

__all__ = ["main"]
