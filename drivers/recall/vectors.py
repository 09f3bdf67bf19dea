"""Vectors of passages: eight bits a number in the file and in memory, compared exactly.

A row is its largest magnitude's 127th part, float32, then one int8 for each dimension. Against
float32 it costs nothing in recall, takes a quarter of the space, and 200,000 rows are compared in
3.4 ms instead of 27 (docs/design/0005). Products of integers are sums without rounding, so a score
depends on nothing but its own row and the query: no other row's presence can show in it.

Sentences (`piece`) stay in the file, for a search looks at those of its best 300 passages only.
Called by the index alone, on its thread; writes belong inside its transaction.
"""

import json
from collections.abc import Iterator, Mapping, Sequence
from itertools import islice
from typing import Any, Final, NamedTuple

import apsw
import numpy as np
import simsimd
from numpy.typing import NDArray

from libmem.abi.errors import Errno, MemError
from libmem.abi.index import IndexVectors
from memosd.drivers.recall.columns import Ints, Scores

__all__ = ["Model", "Quantized", "VectorRows", "cosines", "quantized"]

_CHUNK: Final = 8_192
"""Rows read from the file at a time."""


class Model(NamedTuple):
    """Whose vectors are compared. `number` 0: nobody's; `dimensions` 0: none were kept yet."""

    number: int = 0
    fingerprint: str = ""
    dimensions: int = 0


class Quantized(NamedTuple):
    """Rows of vectors: `scale * steps`."""

    scale: NDArray[np.float32]
    steps: NDArray[np.int8]
    """[rows, dimensions]"""


def quantized(vectors: IndexVectors) -> Quantized:
    """Errors: EINVAL where the bytes are no such vectors."""
    if vectors.dimensions <= 0 or len(vectors.values) % (4 * vectors.dimensions):
        raise MemError(Errno.EINVAL, "these bytes are no vectors", bytes=len(vectors.values))
    values = np.frombuffer(vectors.values, "<f4").reshape(-1, vectors.dimensions)
    values = np.nan_to_num(values, posinf=0.0, neginf=0.0)
    scale = np.abs(values).max(axis=1, initial=0.0) / np.float32(127)
    steps = np.rint(values / np.maximum(scale, np.finfo(np.float32).tiny)[:, None])
    return Quantized(scale.astype(np.float32), steps.astype(np.int8))


def cosines(query: Quantized, rows: Quantized) -> Scores:
    """Of the query's first row and each of the rows."""
    if not len(rows.steps):
        return np.zeros(0, np.float32)
    # Sums of products of int8 are whole numbers that float32 holds exactly, to 1,040 dimensions.
    # Without `out`: with it simsimd gives back a reference to None that it never took, and after
    # some thousands of calls the interpreter ends the process.
    cos: Scores = np.asarray(
        simsimd.cdist(query.steps[:1], rows.steps, metric="dot", out_dtype="f32")
    )[0]
    cos *= rows.scale
    cos *= query.scale[0]
    return cos


class VectorRows:
    """The tables of vectors. `model` is whose are compared."""

    def __init__(self, db: apsw.Connection) -> None:
        self._db = db
        self.model = Model()
        self.reload()

    def reload(self) -> None:
        """Read whose vectors are compared again: at first, and after a rollback."""
        row: Any = self._db.execute(
            "SELECT model.model, fingerprint, dimensions FROM state JOIN model USING (model)"
        ).fetchall()
        self.model = Model(*row[0]) if row else Model()

    def use(self, fingerprint: str) -> None:
        """Compare this model's vectors from now on."""
        self._db.execute("INSERT OR IGNORE INTO model VALUES (NULL, ?, 0)", (fingerprint,))
        self._db.execute(
            "UPDATE state SET model = (SELECT model FROM model WHERE fingerprint = ?)",
            (fingerprint,),
        )
        self.reload()

    def keep(self, vectors: Mapping[int, IndexVectors]) -> dict[int, Quantized]:
        """Keep vectors of passages that are there; what was kept, as it is in memory.

        Errors: EINVAL when they are none, or have another number of dimensions.
        """
        rows = {number: quantized(each) for number, each in vectors.items()}
        rows = {number: each for number, each in rows.items() if len(each.steps)}
        for each in rows.values():
            self._require_dimensions(each.steps.shape[1])
        for number, each in rows.items():
            packed = self._pack(each)
            record = len(packed) // len(each.steps)
            self._db.execute(
                "REPLACE INTO vector VALUES (?, ?, ?)",
                (number, self.model.number, packed[:record]),
            )
            if len(each.steps) > 1:
                self._db.execute("REPLACE INTO piece VALUES (?, ?)", (number, packed[record:]))
            else:
                self._db.execute("DELETE FROM piece WHERE passage = ?", (number,))
        return rows

    def _require_dimensions(self, dimensions: int) -> None:
        if not self.model.dimensions:
            self._db.execute(
                "UPDATE model SET dimensions = ? WHERE model = ?", (dimensions, self.model.number)
            )
            self.model = self.model._replace(dimensions=dimensions)
        if dimensions != self.model.dimensions:
            raise MemError(Errno.EINVAL, "a model's vectors have one size", dimensions=dimensions)

    def wholes(self, numbers: Sequence[int] | None = None) -> Iterator[tuple[Ints, Quantized]]:
        """(passages, their vectors) of the model, oldest first, some thousands at a time; of all
        passages or of these."""
        these = "" if numbers is None else " AND passage IN (SELECT value FROM json_each(:these))"
        sql = f"SELECT passage, whole FROM vector WHERE model = :model{these} ORDER BY passage"
        bindings = {"model": self.model.number, "these": json.dumps(numbers)}
        rows: Any = self._db.execute(sql, bindings)
        while chunk := list(islice(rows, _CHUNK)):
            found, blobs = zip(*chunk, strict=True)
            yield np.array(found, np.int64), self._unpack(blobs)

    def pieces(self, numbers: Sequence[int]) -> tuple[list[int], Ints, Quantized]:
        """(passages that have any, where each one's begin, the sentences' vectors)."""
        sql = (
            "SELECT passage, pieces FROM piece"
            " WHERE passage IN (SELECT value FROM json_each(?)) ORDER BY passage"
        )
        rows: Any = self._db.execute(sql, (json.dumps(numbers),)).fetchall()
        found = [number for number, _ in rows]
        record = self._record().itemsize
        counts = np.array([len(blob) // record for _, blob in rows], np.int64)
        return found, np.cumsum(counts) - counts, self._unpack([blob for _, blob in rows])

    def _record(self) -> np.dtype[np.void]:
        return np.dtype([("scale", "<f4"), ("steps", "i1", (self.model.dimensions,))])

    def _pack(self, rows: Quantized) -> bytes:
        records = np.zeros(len(rows.steps), self._record())
        records["scale"], records["steps"] = rows
        return records.tobytes()

    def _unpack(self, blobs: Sequence[bytes]) -> Quantized:
        joined = b"".join(blobs)
        record = self._record()
        if any(len(blob) % record.itemsize or not blob for blob in blobs):
            raise apsw.CorruptError("a vector of another size than its model's")
        records = np.frombuffer(joined, record)
        return Quantized(records["scale"].copy(), np.ascontiguousarray(records["steps"]))
