"""The rule for leaves in fewer bits: what it says on machines that we know and on ones that we do not."""

import pytest

from edgekv.policies.precision import Form, Hop, host_bits

WHOLE = Form(16, 12_288)
EIGHT = Form(8, 6_624, unpack_s=4.4e-6)  # packed once and unpacked once
FOUR = Form(4, 4_032, unpack_s=4.4e-6)
MEMORY = Hop(0.0, 20e9)
DISK = Hop(43e-6, 1.7e9)
WANTED = 21_320  # leaves that 550 steps at 100,000 tokens chose


@pytest.mark.parametrize(("room_mb", "bits"), [(25, 8), (49, 8), (98, 8), (147, 8), (262, 16), (302, 16)])
def test_what_the_room_decides(room_mb, bits):
    """Guards the case this was measured for: with all that is wanted in memory, rounding buys nothing."""
    assert host_bits([WHOLE, EIGHT], DISK, MEMORY, room_mb * 10**6, WANTED) == bits


def test_forms_that_are_offered_only():
    """Four bits win where they are precise enough to be offered; the rule does not judge that."""
    assert host_bits([WHOLE, EIGHT, FOUR], DISK, MEMORY, 49_000_000, WANTED) == 4
    assert host_bits([WHOLE], DISK, MEMORY, 49_000_000, WANTED) == 16


@pytest.mark.parametrize(
    ("disk", "memory", "unpack_s"),
    [
        (Hop(1e-6, 12e9), MEMORY, 4.4e-6),  # a drive as fast as turning back
        (DISK, MEMORY, 60e-6),  # no fast kernel
        (DISK, Hop(43e-6, 1.7e9), 4.4e-6),  # a host that is no nearer than the disk
    ],
)
def test_where_it_does_not_pay(disk, memory, unpack_s):
    """Guards machines unlike ours: a constant would round leaves there for nothing."""
    eight = Form(8, 6_624, unpack_s=unpack_s)
    assert host_bits([WHOLE, eight], disk, memory, 49_000_000, WANTED) == 16


def test_no_room_and_nothing_wanted():
    """Neither divides by zero, and both stay whole."""
    assert host_bits([WHOLE, EIGHT], DISK, MEMORY, 0, WANTED) == 16
    assert host_bits([WHOLE, EIGHT], DISK, MEMORY, 49_000_000, 0) == 16
