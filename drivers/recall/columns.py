"""What ranking must know of every passage of a namespace, in memory, one row a passage.

Owns growing arrays that follow the committed rows of the file (`documents.py`): `follow` is called
after a commit and never before, so a rollback leaves nothing to undo. Rows stand in the order of
their passages' numbers; a cube's stand side by side. Rows that go are marked and dropped when the
namespace is read again (`is_worn`). On the index's thread only.

A place is (session, position). Every cube in a session knows its own, the one before and the one
after as small integers, so that neighbours among any selection of rows are found by two array
look-ups, and what the selection leaves out has no influence.
"""

from collections.abc import Iterable, Sequence
from typing import Any, Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

from memosd.drivers.recall.documents import Entry, Span, unpack_lengths

__all__ = ["Bools", "Columns", "Floats", "Interned", "Ints", "Links", "Scores"]

Bools = NDArray[np.bool_]
Floats = NDArray[np.float64]
Ints = NDArray[np.int64]
Scores = NDArray[np.float32]

_KINDS: Final[dict[str, Any]] = {
    "number": np.int64,
    "doc": np.int64,
    "audience": np.int64,
    "folder": np.int32,
    "type": np.int32,
    "semantic_type": np.int32,
    "producer": np.int32,
    "session": np.int64,
    "place": np.int32,
    "place_before": np.int32,
    "place_after": np.int32,
    "event_time_ns": np.int64,
    "valid_from_ns": np.int64,
    "valid_to_ns": np.int64,
    "written_ns": np.int64,
    "priority": np.int32,
    "characters": np.int32,
    "is_question": np.bool_,
    "is_first": np.bool_,
    "is_last": np.bool_,
    "is_alive": np.bool_,
    "has_vector": np.bool_,
}
_OF_PASSAGE: Final = ("number", "characters", "is_question", "is_first", "is_last")
_WORN_ROWS: Final = 1_000
_CAPACITY: Final = 64


class Interned:
    """Values as small integers, in order of appearance; NONE for an empty one."""

    NONE: Final = -1

    def __init__(self) -> None:
        self.numbers: dict[Any, int] = {}

    def add(self, value: Any) -> int:
        return self.numbers.setdefault(value, len(self.numbers)) if value else self.NONE

    def find(self, values: Iterable[Any]) -> list[int]:
        """The numbers of those that are known."""
        return [self.numbers[value] for value in values if value in self.numbers]

    def __len__(self) -> int:
        return len(self.numbers)


class Links(NamedTuple):
    """Of each row, where its neighbours are."""

    before: Ints
    """The row before it, -1 where there is none."""
    after: Ints
    is_answer: Bools
    """The one before is a question."""


class Columns:
    """The rows of one namespace. `columns["producer"]` is one value a row, dead ones included."""

    def __init__(self) -> None:
        self.count = 0
        self.alive = 0
        self.generation = 0
        """Another one whenever anything changed."""
        self._altered = 0
        """Cubes that had other facts before, whose names and places are still interned."""
        self.folders = Interned()
        self.types = Interned()
        self.semantic_types = Interned()
        self.producers = Interned()
        self.sessions = Interned()
        self.places = Interned()
        self.steps: NDArray[np.int8] = np.zeros((0, 0), np.int8)
        """The whole's vector of each row, quantized; [rows, dimensions]."""
        self.scale: NDArray[np.float32] = np.zeros(0, np.float32)
        self._arrays = {name: np.zeros(_CAPACITY, kind) for name, kind in _KINDS.items()}

    def __getitem__(self, name: str) -> NDArray[Any]:
        return self._arrays[name][: self.count]

    @property
    def is_worn(self) -> bool:
        """So much in it is of the past that it should be read again."""
        return self.count - self.alive + self._altered > max(_WORN_ROWS, self.alive)

    def rows_of(self, numbers: Sequence[int] | Ints) -> tuple[Ints, Bools]:
        """(rows, is it there and alive?) of passages; a row that is not there is any row."""
        wanted = np.asarray(numbers, np.int64)
        if not self.count:
            return np.zeros(len(wanted), np.int64), np.zeros(len(wanted), np.bool_)
        rows = np.minimum(np.searchsorted(self["number"], wanted), self.count - 1)
        return rows, (self["number"][rows] == wanted) & self["is_alive"][rows]

    # -- following the file --------------------------------------------------------------------

    def append(self, entries: Sequence[Entry]) -> None:
        """Cubes that are newer than all before."""
        if not entries:
            return
        self.generation += 1
        per_cube = [self._facts(entry) for entry in entries]
        lengths = [unpack_lengths(entry.lengths) for entry in entries]
        repeats = [len(each) for each in lengths]
        first, total = self.count, sum(repeats)
        self._grow(first + total)
        self.count += total
        self.alive += total
        for name, *values in zip(per_cube[0], *(facts.values() for facts in per_cube), strict=True):
            self._arrays[name][first : self.count] = np.repeat(
                np.asarray(values, _KINDS[name]), repeats
            )
        of_passage = zip(
            *(
                (entry.doc + at, characters, asks, at == 0, at == len(each) - 1)
                for entry, each in zip(entries, lengths, strict=True)
                for at, (characters, asks) in enumerate(each)
            ),
            strict=True,
        )
        for name, column in zip(_OF_PASSAGE, of_passage, strict=True):
            self._arrays[name][first : self.count] = column
        self._arrays["is_alive"][first : self.count] = True
        self._arrays["has_vector"][first : self.count] = False

    def alter(self, entry: Entry) -> None:
        """Other facts about a cube whose passages stay."""
        self.generation += 1
        self._altered += 1
        rows = self._slice(entry.doc, len(entry.lengths) // 2)
        for name, value in self._facts(entry).items():
            self._arrays[name][rows] = value

    def remove(self, span: Span) -> None:
        self.generation += 1
        rows = self._slice(span.doc, span.passages)
        self._arrays["is_alive"][rows] = False
        self._arrays["has_vector"][rows] = False
        self.steps[rows] = 0
        self.alive -= span.passages

    def _slice(self, doc: int, passages: int) -> slice:
        first = int(np.searchsorted(self["number"], doc))
        return slice(first, first + passages)

    def _facts(self, entry: Entry) -> dict[str, int]:
        """What all passages of a cube share."""
        facets = entry.facets
        session = self.sessions.add(facets.session)
        here, before, after = (
            self.places.add((session, facets.position + step)) if facets.session else Interned.NONE
            for step in (0, -1, 1)
        )
        return {
            "doc": entry.doc,
            "audience": entry.audience,
            "folder": self.folders.add(entry.name.rpartition("/")[0]),
            "type": self.types.add(facets.type),
            "semantic_type": self.semantic_types.add(facets.semantic_type),
            "producer": self.producers.add(facets.producer),
            "session": session,
            "place": here,
            "place_before": before,
            "place_after": after,
            "event_time_ns": facets.event_time_ns,
            "valid_from_ns": facets.valid_from_ns,
            "valid_to_ns": facets.valid_to_ns,
            "written_ns": facets.written_ns,
            "priority": facets.priority,
        }

    # -- vectors -------------------------------------------------------------------------------

    def use_dimensions(self, dimensions: int) -> None:
        """Forget all vectors; those to come have so many dimensions."""
        self.generation += 1
        capacity = len(self._arrays["number"])
        self.steps = np.zeros((capacity, dimensions), np.int8)
        self.scale = np.zeros(capacity, np.float32)
        self._arrays["has_vector"][:] = False

    def keep_vectors(self, rows: Ints, scale: NDArray[np.float32], steps: NDArray[np.int8]) -> None:
        self.generation += 1
        self.scale[rows] = scale
        self.steps[rows] = steps
        self._arrays["has_vector"][rows] = True

    def waiting(self) -> Bools:
        """Rows that should have a vector and have none; nothing can be made of an empty text."""
        rows: Bools = self["is_alive"] & ~self["has_vector"] & (self["characters"] > 0)
        return rows

    # -- neighbours ----------------------------------------------------------------------------

    def links(self, chosen: Bools) -> Links:
        """The rows before and after each row, among those chosen.

        Within a cube its passages; at its ends the nearest passage of the cube at the place before
        or after in the session, where several are there the newest.
        """
        before = np.arange(-1, self.count - 1)
        after = np.arange(1, self.count + 1)
        ends = (("is_first", "is_last", "place_before"), ("is_last", "is_first", "place_after"))
        for side, (own_end, other_end, place) in zip((before, after), ends, strict=True):
            newest = np.full(len(self.places) + 1, -1)  # the last one for Interned.NONE
            there = np.flatnonzero(chosen & self[other_end] & (self["place"] >= 0))
            newest[self["place"][there]] = there
            side[self[own_end]] = newest[self[place][self[own_end]]]
            side[~chosen] = -1
        is_answer = np.append(self["is_question"], np.bool_(False))[before]
        return Links(before, after, is_answer)

    def _grow(self, rows: int) -> None:
        capacity = len(self._arrays["number"])
        if rows <= capacity:
            return
        capacity = max(rows, 2 * capacity)
        self._arrays = {name: _grown(array, capacity) for name, array in self._arrays.items()}
        self.steps = _grown(self.steps, capacity)
        self.scale = _grown(self.scale, capacity)


def _grown(array: NDArray[Any], capacity: int) -> NDArray[Any]:
    grown = np.zeros((capacity, *array.shape[1:]), array.dtype)
    grown[: len(array)] = array
    return grown
