"""Between the engine and a method of selection: anybody may write one, and what it does wrong must not be read.

Knows what a choice has to be; not how one is made.
"""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING

import numpy as np
import torch

from edgekv.errors import EdgeKVError, PolicyError
from edgekv.tiers.arrivals import DamagedColumns

if TYPE_CHECKING:
    from collections.abc import Iterator

    from torch import Tensor

    from edgekv.policies.selection.selector import Selector, Step


@contextmanager
def asking(selector: Selector) -> Iterator[None]:
    """Around every call of a method. Raises PolicyError for what it raises, but for damage and our own errors."""
    try:
        yield
    except (EdgeKVError, DamagedColumns) as error:
        if isinstance(error, PolicyError):
            raise PolicyError(_told(selector, str(error))) from error
        raise
    except Exception as error:  # the edge to code that is not ours
        raise PolicyError(_told(selector, f"{type(error).__name__}: {error}")) from error


def checked(num_chosen: int, step: Step) -> int:
    """How many columns stand in `step.out`, each once and one of those to choose from. Raises PolicyError."""
    if any(ranked.shape != (len(step.columns),) for ranked in step.ranked):
        raise PolicyError(f"`ranked` is not a share of each of {len(step.columns)} columns")
    if not 0 <= num_chosen <= step.num_columns:
        raise PolicyError(f"{num_chosen} columns were chosen, {step.num_columns} is the most")
    if num_chosen == 0:
        return 0
    chosen = np.sort(step.out[:num_chosen].numpy())
    if chosen[0] < step.columns.start or chosen[-1] >= step.columns.stop:
        wrong = chosen[0] if chosen[0] < step.columns.start else chosen[-1]
        raise PolicyError(
            f"column {wrong} was chosen, not one of {step.columns.start} to {step.columns.stop - 1}"
        )
    twice = chosen[1:] == chosen[:-1]
    if twice.any():
        raise PolicyError(f"column {chosen[1:][twice][0]} was chosen twice")
    return int(num_chosen)


def checked_names(named: Tensor, columns: range, most: int, selector: Selector) -> Tensor:
    """`named`, int32 and ascending. Raises PolicyError where they are not some of `columns`, each once, at most
    `most`.
    """
    found = named.to(torch.int32)
    is_ascending = found.dim() == 1 and bool((found[1:] > found[:-1]).all())
    if not is_ascending or (
        len(found) and not columns.start <= int(found[0]) <= int(found[-1]) < columns.stop
    ):
        raise PolicyError(_told(selector, f"named {found.tolist()}, not some of {columns} in their order"))
    if len(found) > most:
        raise PolicyError(_told(selector, f"{len(found)} columns were named, {most} is the most"))
    return found


def _told(selector: Selector, what: str) -> str:
    line = " ".join(what.split())
    return f"the selection method {type(selector).__name__} failed ({line}); choose another with --selection"
