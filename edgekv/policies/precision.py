"""In how many bits a leaf is kept in host memory while its 16-bit copy lies on disk.

Fewer bits hold more leaves in the same room and have to be turned back each time; whether that is the faster way
is a matter of this machine's rates, never of a constant. Which forms are precise enough is for who offers them.
Knows sizes and seconds; neither leaves nor how they are rounded.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence

WHOLE = 16
LEAST_GAIN = 0.05  # of the expected time: rounding is an error, and below this not worth one


@dataclass(frozen=True, slots=True)
class Hop:
    """A way that leaves come: seconds each takes at the depth they are asked for, beside those of its bytes."""

    latency_s: float
    bytes_per_s: float

    def seconds(self, num_bytes: int) -> float:
        """Time that one leaf of so many bytes takes."""
        return self.latency_s + num_bytes / self.bytes_per_s


@dataclass(frozen=True, slots=True)
class Form:
    """A leaf in `bits`: its bytes with scales, and the seconds of making 16 bits of it."""

    bits: int
    num_bytes: int
    unpack_s: float = 0.0


def host_bits(forms: Sequence[Form], disk: Hop, memory: Hop, room_bytes: int, num_wanted: int) -> int:
    """The bits of the form to keep in `room_bytes` of host memory; one of `forms` is the leaf in 16 bits.

    `num_wanted`: leaves that steps choose again and again, as if each were equally likely (the worst case for a
    cache). What does not fit is read from disk, in 16 bits, by `disk`; what fits comes by `memory`, on a GPU the
    link to it. The form with the least expected time for one leaf, 16 bits unless another saves `LEAST_GAIN` of it.
    """
    whole = next(form for form in forms if form.bits == WHOLE)
    from_disk = disk.seconds(whole.num_bytes)

    def expected(form: Form) -> float:
        held = min(1.0, room_bytes / (form.num_bytes * max(1, num_wanted)))
        return held * (memory.seconds(form.num_bytes) + form.unpack_s) + (1 - held) * from_disk

    best = min(forms, key=expected)
    return best.bits if expected(best) < (1 - LEAST_GAIN) * expected(whole) else WHOLE
