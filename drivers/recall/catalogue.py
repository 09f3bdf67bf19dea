"""The namespaces' columns together: read at opening, following each commit.

Called by the index alone, on its thread, and never inside a transaction: what it holds is what the
file holds.
"""

from collections.abc import Iterator, Mapping, Sequence, Set
from itertools import islice
from typing import Final

import numpy as np

from libmem.abi.index import IndexCounts
from memosd.drivers.recall.columns import Columns
from memosd.drivers.recall.documents import Changes, DocumentRows, Entry
from memosd.drivers.recall.vectors import Quantized, VectorRows

__all__ = ["Catalogue"]

_CHUNK: Final = 8_192
"""Cubes read from the file at a time."""


class Catalogue:
    """`spaces`: namespace -> its columns; a namespace without cubes has none."""

    def __init__(self, rows: DocumentRows, vectors: VectorRows) -> None:
        self._rows = rows
        self._vectors = vectors
        self.spaces: dict[int, Columns] = {}
        self._turn = 0
        """The namespace whose passages were handed out last."""
        entries = rows.entries()
        while chunk := list(islice(entries, _CHUNK)):
            self._append(chunk)
        self.load_vectors()

    def follow(self, changes: Changes) -> None:
        """Do what a commit did."""
        for span in changes.gone:
            self.spaces[span.namespace].remove(span)
        for entry in changes.altered:
            self.spaces[entry.namespace].alter(entry)
        self._append(changes.came)
        if changes.carried:
            self._read_vectors(changes.carried)
        changed = {span.namespace for span in changes.gone}
        changed |= {entry.namespace for entry in changes.altered}
        for namespace in changed:
            self._renew(namespace)

    def load_vectors(self) -> None:
        """Read those of the model that the file says: at first, and when it is another one."""
        for columns in self.spaces.values():
            columns.use_dimensions(self._vectors.model.dimensions)
        self._read_vectors(None)

    def _read_vectors(self, passages: Sequence[int] | None) -> None:
        for numbers, wholes in self._vectors.wholes(passages):
            for columns in self.spaces.values():
                rows, there = columns.rows_of(numbers)
                columns.keep_vectors(rows[there], wholes.scale[there], wholes.steps[there])

    def keep(self, vectors: Mapping[int, Quantized]) -> None:
        """Vectors of passages, which the file has."""
        dimensions = self._vectors.model.dimensions
        for columns in self.spaces.values():
            if columns.steps.shape[1] != dimensions:  # the first of a model say how many
                columns.use_dimensions(dimensions)
        for columns, numbers in self._there(vectors):
            rows, _ = columns.rows_of(numbers)
            kept = [vectors[number] for number in numbers]
            scale = np.array([each.scale[0] for each in kept], np.float32)
            columns.keep_vectors(rows, scale, np.stack([each.steps[0] for each in kept]))

    def present(self, numbers: Set[int]) -> set[int]:
        """Those passages that are still there."""
        return {number for _, there in self._there(numbers) for number in there}

    def counts(self) -> IndexCounts:
        return IndexCounts(
            sum(columns.alive for columns in self.spaces.values()),
            sum(columns.lacking for columns in self.spaces.values()),
            self._vectors.model.fingerprint,
        )

    def waiting(self, limit: int, characters: int, skip: Set[int]) -> list[tuple[int, int]]:
        """(passage, namespace) without a vector: the newest of each namespace in turn, from the
        one after the last that had a turn; the first whatever its length."""
        order = sorted(self.spaces, key=lambda namespace: (namespace <= self._turn, namespace))
        lines = [(space, self._newest_waiting(self.spaces[space], skip)) for space in order]
        chosen: list[tuple[int, int]] = []
        while lines and len(chosen) < limit:
            still = []
            for namespace, line in lines:
                number, length = next(line, (0, 0))
                if not number:
                    continue
                characters -= length
                if len(chosen) >= limit or (chosen and characters < 0):
                    return chosen
                chosen.append((number, namespace))
                self._turn = namespace
                still.append((namespace, line))
            lines = still
        return chosen

    @staticmethod
    def _newest_waiting(columns: Columns, skip: Set[int]) -> Iterator[tuple[int, int]]:
        for row in np.flatnonzero(columns.waiting())[::-1]:
            number = int(columns["number"][row])
            if number not in skip:
                yield number, int(columns["characters"][row])

    def _there(
        self, wanted: Set[int] | Mapping[int, object]
    ) -> Iterator[tuple[Columns, list[int]]]:
        numbers = np.array(sorted(wanted), np.int64)
        for columns in self.spaces.values():
            _, is_there = columns.rows_of(numbers)
            if is_there.any():
                yield columns, numbers[is_there].tolist()

    def _append(self, entries: Sequence[Entry]) -> None:
        by_space: dict[int, list[Entry]] = {}
        for entry in entries:
            by_space.setdefault(entry.namespace, []).append(entry)
        for namespace, ours in by_space.items():
            columns = self.spaces.get(namespace)
            if columns is None:
                columns = self.spaces[namespace] = self._new_columns()
            columns.append(ours)

    def _new_columns(self) -> Columns:
        columns = Columns()
        columns.use_dimensions(self._vectors.model.dimensions)
        return columns

    def _renew(self, namespace: int) -> None:
        """Read a namespace again that is worn; forget one without cubes."""
        old = self.spaces[namespace]
        if not old.alive:
            del self.spaces[namespace]
        elif old.is_worn:
            columns = self.spaces[namespace] = self._new_columns()
            columns.append(list(self._rows.entries(namespace)))
            has = old["has_vector"]
            rows, _ = columns.rows_of(old["number"][has])
            columns.keep_vectors(rows, old.scale[: old.count][has], old.steps[: old.count][has])
