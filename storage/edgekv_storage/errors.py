"""Every way a disk, a user or a second process can stop the store, each saying what to do next.

Knows nothing else of the package. Reading back damaged KV is not among them: that is a miss, reported by the
transfer, and recomputed. A damaged transcript is one: nothing can recompute what a person wrote.
"""

from __future__ import annotations


class StorageError(Exception):
    """Parent of all errors the store raises on purpose; one line, fit to be shown to a person."""

    def __init__(self, message: str) -> None:
        super().__init__(message.replace("\n", " "))  # SQLite quotes a damaged schema with its line ends


class Locked(StorageError):
    """Another process owns the data directory: go on with memory only, or end that process."""


class UnknownFormat(StorageError):
    """The data directory was written by another version or program; its files were left alone."""


class Unwritable(StorageError):
    """The data directory cannot be created or written (permissions, read-only file system, gone)."""


class QuotaExceeded(StorageError):
    """The append would pass the disk tier's limit; nothing was written."""


class DiskFull(StorageError):
    """The drive, the user's disk quota or the free-space floor left no room; the append was dropped."""


class WriteFailed(StorageError):
    """The drive reported an error while writing; the segment is closed to writing, the append was dropped."""


class StoreOff(StorageError):
    """The disk tier turned itself off after repeated drive errors."""


class IoUnusable(StorageError):
    """The way of reading that was asked for does not work here."""


class StoreClosed(StorageError):
    """The store was closed."""


class TranscriptDamaged(StorageError):
    """A transcript row does not match its checksum; `turn_id` is None when it is not one turn's row."""

    def __init__(self, message: str, turn_id: int | None = None) -> None:
        super().__init__(message)
        self.turn_id = turn_id


class KeyUnavailable(StorageError):
    """The master key is not to be had: keyring locked or gone, key file missing, passphrase not given."""


class WrongPassphrase(KeyUnavailable):
    """The passphrase does not open the master key; nothing was changed."""


class WrongCode(KeyUnavailable):
    """The recovery code was mistyped, or belongs to another data directory or an earlier master key."""


class KeysDamaged(StorageError):
    """keys.db is missing although there is data, damaged, or not ours; nothing was changed."""


class NoSuchConversation(StorageError):
    """No conversation or turn by that name or id."""


class NameTaken(StorageError):
    """A conversation of that name exists already."""
