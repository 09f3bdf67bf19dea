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

from memosd.drivers.recall.column import Column, grown
from memosd.drivers.recall.documents import Entry, Span

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
    "session": np.int32,
    "place": np.int32,
    "place_before": np.int32,
    "place_after": np.int32,
    "event_time_ns": np.int64,
    "valid_from_ns": np.int64,
    "valid_to_ns": np.int64,
    "written_ns": np.int64,
    "priority": np.int16,
    "characters": np.int16,
    "is_question": np.bool_,
    "is_first": np.bool_,
    "is_last": np.bool_,
    "is_alive": np.bool_,
    "has_vector": np.bool_,
}
_TIMES: Final = ("event_time_ns", "valid_from_ns", "valid_to_ns", "written_ns")
_WORN_ROWS: Final = 1_000
_STRETCH: Final = 8
"""Positions of a session that are interned together: one by one they cost 200 bytes a memory."""


class Interned:
    """Values as small integers, in order of appearance; NONE for an empty one."""

    NONE: Final = -1

    def __init__(self) -> None:
        self.numbers: dict[Any, int] = {}

    def add(self, value: Any) -> int:
        return self.numbers.setdefault(value, len(self.numbers)) if value else self.NONE

    def add_all(self, values: Sequence[Any]) -> list[int]:
        """A value each."""
        add = self.add
        known = {value: add(value) for value in dict.fromkeys(values)}
        return [known[value] for value in values]

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
        self.lacking = 0
        """Rows that `waiting` would say."""
        self._altered = 0
        """Cubes that had other facts before, whose names and places are still interned."""
        self.folders = Interned()
        self.types = Interned()
        self.semantic_types = Interned()
        self.producers = Interned()
        self.sessions = Interned()
        self.stretches = Interned()
        """Of places, _STRETCH side by side."""
        self.steps: NDArray[np.int8] = np.zeros((0, 0), np.int8)
        """The whole's vector of each row, quantized; [rows, dimensions]."""
        self.scale: NDArray[np.float32] = np.zeros(0, np.float32)
        self._columns = {name: Column(kind) for name, kind in _KINDS.items()}

    def __getitem__(self, name: str) -> NDArray[Any]:
        return self._columns[name].rows

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
        packed = np.frombuffer(b"".join(entry.lengths for entry in entries), np.uint16)
        passages = np.array([len(entry.lengths) for entry in entries]) // packed.itemsize
        if passages.sum() != len(packed):
            raise ValueError("half a length")
        self.count += len(packed)
        self.alive += len(packed)
        self.steps = grown(self.steps, self.count)
        self.scale = grown(self.scale, self.count)
        per_cube = self._facts(entries)
        for name, values in per_cube.items():
            self._columns[name].append(np.repeat(np.array(values, _KINDS[name]), passages))
        ends = np.cumsum(passages)
        within = np.arange(len(packed)) - np.repeat(ends - passages, passages)
        of_passage: dict[str, NDArray[Any]] = {
            "number": np.repeat(np.array(per_cube["doc"]), passages) + within,
            "characters": packed >> 1,
            "is_question": packed & 1,
            "is_first": within == 0,
            "is_last": within == np.repeat(passages, passages) - 1,
            "is_alive": np.ones(len(packed), np.bool_),
            "has_vector": np.zeros(len(packed), np.bool_),
        }
        for name, column in of_passage.items():
            self._columns[name].append(column)
        self.lacking += int(np.count_nonzero(packed >> 1))

    def alter(self, entry: Entry) -> None:
        """Other facts about a cube whose passages stay."""
        self.generation += 1
        self._altered += 1
        rows = self._slice(entry.doc, len(entry.lengths) // 2)
        for name, values in self._facts([entry]).items():
            self._columns[name].put(rows, values)

    def remove(self, span: Span) -> None:
        self.generation += 1
        rows = self._slice(span.doc, span.passages)
        self.lacking -= int(np.count_nonzero(self._is_waiting(rows)))
        self._columns["is_alive"].put(rows, False)
        self._columns["has_vector"].put(rows, False)
        self.steps[rows] = 0
        self.alive -= span.passages

    def _slice(self, doc: int, passages: int) -> slice:
        first = int(np.searchsorted(self["number"], doc))
        return slice(first, first + passages)

    def _facts(self, entries: Sequence[Entry]) -> dict[str, Sequence[int]]:
        """What all passages of a cube share: for each column its values, one a cube."""
        docs, _, audiences, names, _, *facts = zip(*entries, strict=True)
        types, semantic_types, producers, sessions, positions, *times, priorities = facts
        spoken = self.sessions.add_all(sessions)
        here, before, after = (self._places(spoken, positions, step) for step in (0, -1, 1))
        return {
            "doc": docs,
            "audience": audiences,
            "folder": self.folders.add_all([name.rpartition("/")[0] for name in names]),
            "type": self.types.add_all(types),
            "semantic_type": self.semantic_types.add_all(semantic_types),
            "producer": self.producers.add_all(producers),
            "session": spoken,
            "place": here,
            "place_before": before,
            "place_after": after,
            **dict(zip(_TIMES, times, strict=True)),
            "priority": priorities,
        }

    def _places(
        self, sessions: Sequence[int], positions: Sequence[int], step: int
    ) -> Sequence[int]:
        places = []
        for session, position in zip(sessions, positions, strict=True):
            if session == Interned.NONE:
                places.append(Interned.NONE)
                continue
            # Most begin at 0: it, and what would be before it, are in one stretch.
            stretch, within = divmod(position + 1 + step, _STRETCH)
            places.append(self.stretches.add((session, stretch)) * _STRETCH + within)
        return places

    # -- vectors -------------------------------------------------------------------------------

    def use_dimensions(self, dimensions: int) -> None:
        """Forget all vectors; those to come have so many dimensions."""
        self.generation += 1
        capacity = max(self.count, len(self.scale))
        self.steps = np.zeros((capacity, dimensions), np.int8)
        self.scale = np.zeros(capacity, np.float32)
        self._columns["has_vector"].put(slice(None), False)
        self.lacking = int(np.count_nonzero(self.waiting()))

    def keep_vectors(self, rows: Ints, scale: NDArray[np.float32], steps: NDArray[np.int8]) -> None:
        """Of rows that are alive, each once."""
        self.generation += 1
        self.lacking -= int(np.count_nonzero(self._is_waiting(rows)))
        self.scale[rows] = scale
        self.steps[rows] = steps
        self._columns["has_vector"].put(rows, True)

    def waiting(self) -> Bools:
        """Rows that should have a vector and have none; nothing can be made of an empty text."""
        return self._is_waiting(slice(None))

    def _is_waiting(self, rows: slice | Ints) -> Bools:
        lacking = self["is_alive"][rows] & ~self["has_vector"][rows]
        waiting: Bools = lacking & (self["characters"][rows] > 0)
        return waiting

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
            # The last one for Interned.NONE.
            newest = np.full(len(self.stretches) * _STRETCH + 1, -1)
            there = np.flatnonzero(chosen & self[other_end] & (self["place"] >= 0))
            newest[self["place"][there]] = there
            side[self[own_end]] = newest[self[place][self[own_end]]]
            side[~chosen] = -1
        is_answer = np.append(self["is_question"], np.bool_(False))[before]
        return Links(before, after, is_answer)
