"""From scores to what a search returns: the best cubes, their texts, and why.

Called by `search.py` alone. A cube ranks by its best passage; among equals the newest comes first.
"""

from collections.abc import Sequence, Set
from typing import Any, NamedTuple

import apsw
import numpy as np

from libmem.abi.index import IndexBeside, IndexHit
from memosd.drivers.recall.columns import Ints
from memosd.drivers.recall.hybrid import Worth, best
from memosd.drivers.recall.passages import shown
from memosd.drivers.recall.query import Tokenizer
from memosd.drivers.recall.snippet import snippet

__all__ = ["Ranked", "Texts", "best_cubes"]


class Ranked(NamedTuple):
    """A row that is a hit."""

    worth: Worth
    row: int


def best_cubes(worths: Sequence[Worth], limit: int) -> list[Ranked]:
    """The best passage of each of the `limit` best cubes."""
    values = [np.where(each.is_hit, each.total, np.float32(-np.inf)) for each in worths]
    hits = sum(int(each.is_hit.sum()) for each in worths)
    wanted = limit
    while True:
        ranked = _one_of_each_cube(worths, best(values, wanted))
        if len(ranked) >= limit or wanted >= hits:
            return ranked[:limit]
        wanted *= 4  # a long text has many passages


def _one_of_each_cube(worths: Sequence[Worth], chosen: Sequence[Ints]) -> list[Ranked]:
    rows = [
        (-score, -number, doc, Ranked(worth, row))
        for worth, of_scope in zip(worths, chosen, strict=True)
        for score, number, doc, row in zip(
            worth.total[of_scope].tolist(),
            worth.scope.columns["number"][of_scope].tolist(),
            worth.scope.columns["doc"][of_scope].tolist(),
            of_scope.tolist(),
            strict=True,
        )
    ]
    rows.sort(key=lambda row: row[:2])
    firsts: dict[int, Ranked] = {}
    for _, _, doc, ranked in rows:
        firsts.setdefault(doc, ranked)
    return list(firsts.values())


class Texts:
    """The texts of passages, and whose they are."""

    def __init__(self, db: apsw.Connection, tokenize: Tokenizer) -> None:
        self._db = db
        self._tokenize = tokenize

    def hit(self, ranked: Ranked, keys: Set[str], beside: int) -> IndexHit:
        """`keys` are the words to be marked; `beside`: passages wanted on either side."""
        worth, row = ranked
        columns = worth.scope.columns
        text = self.stored(int(columns["number"][row]))
        cube, version, _ = self._cube(int(columns["doc"][row]))
        return IndexHit(
            cube,
            version,
            float(worth.total[row]),
            snippet(text, keys, self._tokenize),
            worth.explain(row),
            shown(text),
            tuple(self._beside(ranked, beside)),
        )

    def stored(self, number: int) -> str:
        """A passage as it is kept."""
        text = self._row("SELECT text FROM passage WHERE passage = ?", number)[0]
        if not isinstance(text, str):
            raise apsw.CorruptError("a passage is no text")
        return text

    def _cube(self, doc: int) -> tuple[bytes, int, str]:
        row = self._row("SELECT id, version, producer FROM document WHERE doc = ?", doc)
        return row[0], row[1], row[2]

    def _beside(self, ranked: Ranked, wanted: int) -> list[IndexBeside]:
        scope = ranked.worth.scope
        found: list[IndexBeside] = []
        for step, side in ((-1, scope.links.before), (1, scope.links.after)):
            row = ranked.row
            for distance in range(1, wanted + 1):
                row = int(side[row])
                if row < 0:
                    break
                cube, _, producer = self._cube(int(scope.columns["doc"][row]))
                text = shown(self.stored(int(scope.columns["number"][row])))
                found.append(IndexBeside(cube, step * distance, text, producer))
        return sorted(found, key=lambda passage: passage.distance)

    def _row(self, sql: str, key: int) -> Any:
        rows: Any = self._db.execute(sql, (key,)).fetchall()
        if not rows:
            raise apsw.CorruptError("a row is missing")
        return rows[0]
