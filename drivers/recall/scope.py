"""Which passages a question may touch, and which of them it may find.

Three selections of a namespace's rows, each within the one before. *Readable*: in an audience that
the caller may read. What is not never takes part in anything: names, dates, statistics, maxima,
neighbours. *Searched*: in the subtree that was asked for; maxima of a session and neighbours'
credit come from these. *Candidates*: what passes the filter; hits, and the maxima that words and
meaning are measured by. So a filter chooses among hits, and does not hide the question to which a
hit is the answer.
"""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import apsw
import numpy as np

from libmem.abi.index import IndexFilter, IndexQuestion
from memosd.drivers.recall.catalogue import Catalogue
from memosd.drivers.recall.columns import Bools, Columns, Interned, Ints, Links
from memosd.drivers.recall.documents import DocumentRows

__all__ = ["Scope", "Scopes"]


class Scope(NamedTuple):
    """A namespace as one question sees it."""

    columns: Columns
    audiences: Mapping[int, int]
    """Those that the caller may read: number -> passages."""
    searched: Bools
    candidates: Bools
    links: Links
    """To neighbours that are searched."""

    @property
    def context(self) -> Bools:
        """The candidates and what stands beside them."""
        if np.array_equal(self.candidates, self.searched):
            return self.searched
        chosen = self.candidates.copy()
        for side in (self.links.before, self.links.after):
            beside = side[self.candidates]
            chosen[beside[beside >= 0]] = True
        return chosen & self.searched


class _Readable(NamedTuple):
    columns: Columns
    generation: int
    chosen: tuple[int, ...]
    rows: Bools
    audiences: Mapping[int, int]
    links: Links


class _Below(NamedTuple):
    """What is readable in a subtree."""

    readable: _Readable
    prefix: str
    rows: Bools
    links: Links


class Scopes:
    """Makes scopes; remembers of each namespace what the last caller could read, and the last
    subtree of it."""

    def __init__(self, db: apsw.Connection, rows: DocumentRows, catalogue: Catalogue) -> None:
        self._db = db
        self._rows = rows
        self._catalogue = catalogue
        self._known: dict[int, _Readable] = {}
        self._below: dict[int, _Below] = {}

    def of(self, question: IndexQuestion) -> list[Scope]:
        """The namespaces in which the caller may find anything at all."""
        for namespace in self._known.keys() - self._catalogue.spaces.keys():
            del self._known[namespace]
            self._below.pop(namespace, None)
        return list(self._scopes(question))

    def _scopes(self, question: IndexQuestion) -> Iterator[Scope]:
        audiences: dict[int, list[int]] = {}
        for number, audience in self._rows.audiences.items():
            if audience.namespace in question.spaces and question.may_read(
                audience.owner, audience.mode
            ):
                audiences.setdefault(audience.namespace, []).append(number)
        for namespace, readable in sorted(audiences.items()):
            known = self._readable(namespace, tuple(sorted(readable)))
            columns, prefix = known.columns, question.spaces[namespace]
            searched, links = known.rows, known.links
            if prefix:
                _, _, searched, links = self._readable_below(namespace, known, prefix)
            candidates = searched & passing(columns, question.filter)
            yield Scope(columns, known.audiences, searched, candidates, links)

    def _readable(self, namespace: int, audiences: tuple[int, ...]) -> _Readable:
        columns = self._catalogue.spaces[namespace]
        known = self._known.get(namespace)
        state = (columns, columns.generation, audiences)
        if known is None or known[:3] != state:
            rows = columns["is_alive"] & is_one_of(columns["audience"], audiences)
            at = np.searchsorted(np.array(audiences, np.int64), columns["audience"][rows])
            counts = np.bincount(at, minlength=len(audiences)).tolist()
            passages = dict(zip(audiences, counts, strict=True))
            known = _Readable(*state, rows, passages, columns.links(rows))
            self._known[namespace] = known
        return known

    def _readable_below(self, namespace: int, readable: _Readable, prefix: str) -> _Below:
        below = self._below.get(namespace)
        if below is None or below.readable is not readable or below.prefix != prefix:
            rows = readable.rows & self._subtree(readable.columns, prefix)
            # What lies outside must not stand in a neighbour's place either.
            below = _Below(readable, prefix, rows, readable.columns.links(rows))
            self._below[namespace] = below
        return below

    def _subtree(self, columns: Columns, prefix: str) -> Bools:
        """The cubes in `prefix` or a folder below, and the cube of that name."""
        below = prefix + "/"
        folders = columns.folders.numbers
        inside = np.zeros(len(folders) + 1, np.bool_)
        inside[[n for name, n in folders.items() if name == prefix or name.startswith(below)]] = (
            True
        )
        named: Any = self._db.execute("SELECT doc FROM document WHERE name = ?", (prefix,))
        rows: Bools = inside[columns["folder"]]
        for (doc,) in named.fetchall():
            rows = rows | (columns["doc"] == doc)
        return rows


def passing(columns: Columns, wanted: IndexFilter) -> Bools:
    """The rows that a filter lets through."""
    rows = np.ones(columns.count, np.bool_)
    facets: tuple[tuple[str, Interned, Sequence[str]], ...] = (
        ("type", columns.types, wanted.types),
        ("semantic_type", columns.semantic_types, wanted.semantic_types),
        ("producer", columns.producers, wanted.producers),
        ("session", columns.sessions, wanted.sessions),
    )
    for name, interned, values in facets:
        if values:
            rows &= is_one_of(columns[name], interned.find(values))
    happened = columns["event_time_ns"]
    if wanted.event_from_ns or wanted.event_to_ns:
        rows &= (happened != 0) & (happened >= wanted.event_from_ns)
    if wanted.event_to_ns:
        rows &= happened <= wanted.event_to_ns
    if wanted.valid_at_ns:
        until = columns["valid_to_ns"]
        rows &= columns["valid_from_ns"] <= wanted.valid_at_ns
        rows &= (until == 0) | (until > wanted.valid_at_ns)
    return rows


def is_one_of(values: Ints, chosen: Sequence[int]) -> Bools:
    """As np.isin, faster for the few that are usual."""
    if len(chosen) == 1:
        one: Bools = values == chosen[0]
        return one
    return np.isin(values, np.array(chosen, np.int64))
