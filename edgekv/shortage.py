"""Memory that this machine does not have: one error that says what to do, whoever noticed it first.

Python, the system's calls, torch and CUDA each raise their own. Knows nothing of what was asked for.
"""

from __future__ import annotations

import errno

from edgekv.errors import OutOfMemory

_ADVICE = "close other programs, or take a smaller --device-budget and --host-budget, or a smaller model"


def told_as(error: BaseException) -> BaseException:
    """What a person is to be told of `error`: OutOfMemory if that is what it means, else itself."""
    if not _is_shortage(error):
        return error
    where = "the GPU" if type(error).__name__ == "OutOfMemoryError" else "this machine"
    told = OutOfMemory(f"{where} has not enough free memory; {_ADVICE}")
    told.__cause__ = error
    return told


def _is_shortage(error: BaseException) -> bool:
    if isinstance(error, OSError):
        return error.errno == errno.ENOMEM
    # torch's two, by name and by text: importing torch for this would take seconds.
    is_torchs = isinstance(error, RuntimeError) and "can't allocate memory" in str(error)
    return isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError" or is_torchs
