"""The one account of KV bytes over all tiers. Nothing holds KV that is not reserved here.

The engine thread reserves and releases; any thread may read a snapshot (plain ints, no lock needed).
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum


class Tier(Enum):
    """A place for KV with a capacity in bytes."""

    DEVICE = "device"
    HOST = "host"
    DISK = "disk"


@dataclass(slots=True)
class Account:
    """Bytes of one tier: its limit, what is in use, and the most that ever was."""

    capacity: int
    used: int = 0
    peak: int = 0


class Ledger:
    """Accounts of the three tiers. A reservation that would pass a limit is refused, never trimmed."""

    def __init__(self, device_bytes: int, host_bytes: int, disk_bytes: int) -> None:
        self._accounts = {
            Tier.DEVICE: Account(device_bytes),
            Tier.HOST: Account(host_bytes),
            Tier.DISK: Account(disk_bytes),
        }

    def __getitem__(self, tier: Tier) -> Account:
        return self._accounts[tier]

    def carry_on(self, earlier: Ledger) -> None:
        """Take over the peaks of a ledger that this one follows: they are the process's."""
        for tier, account in self._accounts.items():
            account.peak = max(account.peak, earlier[tier].peak)

    def reserve(self, tier: Tier, num_bytes: int) -> bool:
        """Take `num_bytes` of the tier; False, and nothing taken, when they do not fit."""
        account = self._accounts[tier]
        if account.used + num_bytes > account.capacity:
            return False
        account.used += num_bytes
        account.peak = max(account.peak, account.used)
        return True

    def release(self, tier: Tier, num_bytes: int) -> None:
        """Give back what `reserve` took."""
        account = self._accounts[tier]
        assert num_bytes <= account.used, (tier, num_bytes, account.used)
        account.used -= num_bytes

    def observe(self, tier: Tier, used: int) -> None:
        """Set the use of a tier that keeps its own books (the store counts its files)."""
        account = self._accounts[tier]
        account.used = used
        account.peak = max(account.peak, used)
