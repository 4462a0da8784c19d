"""Where every leaf of one sequence lies: the only truth about presence.

Row = layer, column = 16 tokens. `device` and `host` hold slot numbers, ABSENT where there is no copy;
`places` holds the store's handle of a column on disk. A leaf may have copies in several tiers: the upper
ones are clean caches of the lower ones. Knows no bytes and moves nothing.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

ABSENT = -1


class Directory:
    """Slots of `num_columns` columns in `num_layers` layers."""

    def __init__(self, num_layers: int) -> None:
        self.num_layers = num_layers
        self.num_columns = 0
        self.version = 0  # changes whenever a slot or the number of columns does: plans are cached by it
        self.places: list[Any] = []
        self._counted: tuple[tuple[int, bool], int] | None = None  # `num_away` of (version, in_place)
        self._device = np.full((num_layers, 64), ABSENT, dtype=np.int32)
        self._host = np.full((num_layers, 64), ABSENT, dtype=np.int32)

    @property
    def device(self) -> NDArray[np.int32]:
        """`[num_layers, num_columns]` device slots (a view)."""
        return self._device[:, : self.num_columns]

    @property
    def host(self) -> NDArray[np.int32]:
        """`[num_layers, num_columns]` host slots (a view)."""
        return self._host[:, : self.num_columns]

    def grow(self, num_columns: int) -> None:
        """Add absent columns up to `num_columns`."""
        assert num_columns >= self.num_columns
        capacity = self._device.shape[1]
        if num_columns > capacity:
            extra = np.full((self.num_layers, max(capacity, num_columns - capacity)), ABSENT, dtype=np.int32)
            device = np.concatenate([self._device, extra], axis=1)
            self._host = np.concatenate([self._host, extra], axis=1)
            self._device = device  # last: its width is what counts as there
        self.places.extend([None] * (num_columns - self.num_columns))
        self.num_columns = num_columns
        self.version += 1

    def truncate(self, num_columns: int) -> None:
        """Forget columns from `num_columns` on; their slots must have been given back."""
        assert (self._device[:, num_columns : self.num_columns] == ABSENT).all()
        assert (self._host[:, num_columns : self.num_columns] == ABSENT).all()
        del self.places[num_columns:]
        self.num_columns = num_columns
        self.version += 1

    def put_device(self, columns: NDArray[np.intp], slots: NDArray[np.int32]) -> None:
        """Record device slots `[num_layers, len(columns)]`."""
        if len(columns):
            self._device[:, columns] = slots
            self.version += 1

    def put_host(self, columns: NDArray[np.intp], slots: NDArray[np.int32]) -> None:
        """Record host slots `[num_layers, len(columns)]`."""
        if len(columns):
            self._host[:, columns] = slots
            self.version += 1

    def on_device(self) -> NDArray[np.intp]:
        """Columns with a device copy, ascending."""
        return np.flatnonzero(self.device[0] != ABSENT)

    def on_host(self) -> NDArray[np.intp]:
        """Columns with a host copy, ascending."""
        return np.flatnonzero(self.host[0] != ABSENT)

    def num_away(self, *, in_place: bool) -> int:
        """Columns that are not on the device, nor (`in_place`) on the host. Asked before every pass: remembered."""
        now = (self.version, in_place)
        if self._counted is None or self._counted[0] != now:
            away = self.device[0] == ABSENT
            if in_place:
                away &= self.host[0] == ABSENT
            self._counted = now, int(away.sum())
        return self._counted[1]

    def letters(self) -> str:
        """D device, H host, S disk, - nowhere: the highest tier of each column. Any thread: a moment's picture."""
        device, host, places = self.device[0] != ABSENT, self.host[0] != ABSENT, list(self.places)
        shown = zip(device.tolist(), host.tolist(), places, strict=False)  # it may be growing meanwhile
        return "".join("D" if d else "H" if h else "-" if place is None else "S" for d, h, place in shown)

    def off_device(self) -> NDArray[np.intp]:
        """Columns without a device copy, ascending."""
        return np.flatnonzero(self.device[0] == ABSENT)
