"""An index in a dict, for the kernel's tests: words counted, vectors kept and not compared."""

import re
from collections.abc import Iterable, Mapping, Sequence, Set

from libmem.abi.errors import Errno, MemError
from libmem.abi.index import (
    HIT_END,
    HIT_START,
    IndexCounts,
    IndexDocument,
    IndexHit,
    IndexPassage,
    IndexQuestion,
    IndexVectors,
)
from libmem.abi.structs import Understood

__all__ = ["FakeIndex", "FakePlan"]


class FakePlan:
    """A question, with what each call made of it."""

    def __init__(self, question: IndexQuestion) -> None:
        self.question = question
        self.understood = Understood(text=question.query)
        self.is_matched = False
        self.lacks_vectors = False


class FakeIndex:
    """One passage a cube. What was applied outlives a crash, as a file would."""

    name = "fake"

    def __init__(self) -> None:
        self.stamp = 0
        self.documents: dict[bytes, IndexDocument] = {}
        self.vectors: dict[int, IndexVectors] = {}
        """By passage."""
        self.failure: MemError | None = None
        """Raised by every call while it is set."""
        self.is_full = False
        """The disk: what is there can be searched, nothing can be added."""
        self.clears = 0
        self.ranked_with: IndexVectors | None = None
        """The vector of the last search."""
        self._numbers: dict[bytes, int] = {}
        self._last = 0
        self._model = ""
        self.counts = IndexCounts()

    def open(self) -> int:
        self._fail_as_planned()
        return self.stamp

    def apply(
        self, stamp: int, documents: Sequence[IndexDocument], removed: Iterable[bytes]
    ) -> None:
        self._fail_as_planned()
        if self.is_full:
            raise MemError(Errno.ENOSPC, "no room")
        for cube_id in removed:
            self.documents.pop(cube_id, None)
            self._drop_passage(cube_id)
        for document in documents:
            old = self.documents.get(document.id)
            if old is None or old.text != document.text:
                self._drop_passage(document.id)
                self._last += 1
                self._numbers[document.id] = self._last
            self.documents[document.id] = document
        self.stamp = stamp
        self._count()

    def plan(self, question: IndexQuestion) -> FakePlan:
        self._fail_as_planned()
        return FakePlan(question)

    def match(self, plan: FakePlan) -> None:
        self._fail_as_planned()
        plan.is_matched = True

    def rank(self, plan: FakePlan, vector: IndexVectors | None) -> list[IndexHit]:
        self._fail_as_planned()
        assert plan.is_matched
        self.ranked_with = vector
        question = plan.question
        plan.lacks_vectors = bool(vector and self.counts.waiting == self.counts.passages)
        query = question.query
        found = []
        for document in self.documents.values():
            score = float(re.findall(r"\w+", document.text).count(query))
            facets = document.facets
            if (
                score
                and _is_within(document, question.spaces)
                and question.may_read(facets.owner, facets.mode)
                and facets.type in (question.filter.types or (facets.type,))
            ):
                snippet = f"{HIT_START}{query}{HIT_END}"
                hit = IndexHit(
                    document.id, document.version, score, snippet, {"bm25": score}, document.text
                )
                found.append(hit)
        return sorted(found, key=lambda hit: (-hit.score, hit.id))[: question.limit]

    def waiting(self, limit: int, characters: int, skip: Set[int]) -> list[IndexPassage]:
        self._fail_as_planned()
        numbers = [number for number in self._waiting() if number not in skip][:limit]
        names = {number: cube_id for cube_id, number in self._numbers.items()}
        found: list[IndexPassage] = []
        for number in numbers:
            document = self.documents[names[number]]
            characters -= len(document.text)
            if found and characters < 0:
                break
            found.append(IndexPassage(number, document.namespace, document.text))
        return found

    def keep(self, vectors: Mapping[int, IndexVectors]) -> None:
        self._fail_as_planned()
        known = set(self._numbers.values())
        self.vectors.update({number: rows for number, rows in vectors.items() if number in known})
        self._count()

    def use_model(self, model: str) -> None:
        self._fail_as_planned()
        self._model = model
        self._count()

    def clear(self) -> None:
        self._fail_as_planned()
        self.clears += 1
        self.stamp = 0
        self.documents.clear()
        self.vectors.clear()
        self._numbers.clear()
        self._count()

    def close(self) -> None:
        """Nothing is held open."""

    def _drop_passage(self, cube_id: bytes) -> None:
        number = self._numbers.pop(cube_id, 0)
        self.vectors.pop(number, None)

    def _waiting(self) -> list[int]:
        return [
            number
            for number in sorted(self._numbers.values())
            if number not in self.vectors or self.vectors[number].model != self._model
        ]

    def _count(self) -> None:
        self.counts = IndexCounts(len(self._numbers), len(self._waiting()), self._model)

    def _fail_as_planned(self) -> None:
        if self.failure is not None:
            raise self.failure


def _is_within(document: IndexDocument, namespaces: Mapping[int, str]) -> bool:
    prefix = namespaces.get(document.namespace)
    if prefix is None:
        return False
    return not prefix or document.name == prefix or document.name.startswith(prefix + "/")
