"""One read through a ring, from the job to its end: prepared, and settled when the kernel is done with it.

Knows jobs, alignment and what happens to a read the kernel did not make whole; not queues, order nor threads.
"""

from __future__ import annotations

import errno
import logging
from typing import TYPE_CHECKING, NamedTuple

from edgekv_storage.io.blocking import direct_range, is_aligned, read_job, settle
from edgekv_storage.io.buffers import POOL

if TYPE_CHECKING:
    from edgekv_storage.io.protocol import ReadJob
    from edgekv_storage.io.ring import Prepared, Ring

_log = logging.getLogger(__name__)
_LONG_COPY = 64 << 10


class Flight(NamedTuple):
    """A job whose read has been prepared."""

    job: ReadJob
    buffers: list[memoryview]
    bounce: memoryview | None
    num_bytes: int


def begin(ring: Ring[Flight], job: ReadJob, *, use_direct: bool) -> Prepared[Flight] | None:
    """The job's read, ready to be started; None where the job is over already."""
    bounce = None
    try:
        buffers = job.begin()
        if buffers is None:
            raise OSError(errno.ECANCELED, "no longer wanted")  # noqa: TRY301
        offset, target, copies = job.offset, buffers, False
        fd = job.file.direct if use_direct and not job.buffered else None
        if fd is None:
            fd = job.file.buffered
            copies = sum(map(len, buffers)) >= _LONG_COPY
        elif not is_aligned(job.offset, buffers):
            offset, num_bytes = direct_range(job.offset, buffers)
            bounce = POOL.take(num_bytes)
            target = [bounce]
        flight = Flight(job, buffers, bounce, sum(map(len, buffers)))
        return ring.prepare(flight, fd, target, offset, copies=copies)
    except OSError as error:
        job.finish(error)
    except Exception as error:  # noqa: BLE001  a thread's edge: a dead thread would hang every waiter
        _log.exception("a read failed on our side")
        job.finish(OSError(errno.EAGAIN, f"{error}"))  # ours: the drive lost nothing
    return None


def land(flight: Flight, result: int | OSError, *, use_direct: bool) -> None:
    """Ends a job whose read is over: `result` is the bytes read, or why there are none."""
    job, buffers, bounce, _ = flight
    error: OSError | None = None
    try:
        if isinstance(result, int):
            settle(job, buffers, result, bounce)
        else:  # refused, interrupted or out of some resource: made again the plain way, which tells
            read_job(job, buffers, POOL, use_direct=use_direct)
    except OSError as failure:
        error = failure
    except Exception as failure:  # noqa: BLE001  as in begin
        _log.exception("a read failed on our side")
        error = OSError(errno.EAGAIN, f"{failure}")
    if bounce is not None:
        POOL.give(bounce)
    job.finish(error)
