"""One fact about every row: a growing array that takes no room while all rows say the same.

Most memories have no session, no producer, no time but their own, and one passage; a million rows
of which each said so would be most of what ranking keeps in memory. Owned by `columns.py`; numbers
only. On the index's thread.
"""

from typing import Any, Final

import numpy as np
from numpy.typing import ArrayLike, NDArray

__all__ = ["Column"]

_CAPACITY: Final = 64


class Column:
    """`rows` is a view: of what may be written where rows differ, else of one number."""

    __slots__ = ("_array", "_count", "_one")

    def __init__(self, kind: Any) -> None:
        self._one: NDArray[Any] = np.zeros(1, kind)
        """What all rows say, as long as there is no array of them."""
        self._array: NDArray[Any] | None = None
        self._count = 0

    @property
    def rows(self) -> NDArray[Any]:
        if self._array is not None:
            return self._array[: self._count]
        # As np.broadcast_to, in a tenth of its time; bytes, so that nobody writes to it.
        return np.ndarray((self._count,), self._one.dtype, self._one.tobytes(), strides=(0,))

    def append(self, values: NDArray[Any]) -> None:
        """One value for each new row."""
        first = self._count
        if not first and len(values):
            self._one[0] = values[0]
        if self._array is None and not (values == self._one).all():
            self._spread(first + len(values))
        self._count += len(values)
        if self._array is not None:
            self._array = grown(self._array, self._count)
            self._array[first : self._count] = values

    def put(self, rows: slice | NDArray[np.int64], values: ArrayLike) -> None:
        """Other values for rows that are there."""
        if self._array is None:
            if np.all(values == self._one):
                return
            self._spread(self._count)
        assert self._array is not None
        self._array[rows] = values

    def _spread(self, capacity: int) -> None:
        array = np.empty(max(_CAPACITY, capacity), self._one.dtype)
        array[: self._count] = self._one
        self._array = array


def grown(array: NDArray[Any], count: int) -> NDArray[Any]:
    """The array itself where it has so many rows, else a copy with room for as many again.

    Pages that nobody has written to take no memory.
    """
    if count <= len(array):
        return array
    larger = np.zeros((max(count, 2 * len(array)), *array.shape[1:]), array.dtype)
    larger[: len(array)] = array
    return larger
