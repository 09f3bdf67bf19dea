"""A search in its three steps: what the question means, what its words find, what ranks best.

The reading half of the index; called by `index.py` alone, on its thread. Each step looks at the
rows as they are then: between two of them cubes may come, go, and change who may read them.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final

import apsw

from libmem.abi.index import IndexHit, IndexQuestion, IndexVectors
from libmem.abi.structs import SearchMode, Understood
from memosd.drivers.recall.catalogue import Catalogue
from memosd.drivers.recall.documents import DocumentRows
from memosd.drivers.recall.hits import Texts, best_cubes
from memosd.drivers.recall.hybrid import Sense, Worth, by_all, by_meaning, by_words
from memosd.drivers.recall.lexical import Lexical, Matches
from memosd.drivers.recall.query import terms_of
from memosd.drivers.recall.scope import Scope, Scopes
from memosd.drivers.recall.stopwords import content_words
from memosd.drivers.recall.understanding import understand
from memosd.drivers.recall.vectors import Quantized, VectorRows, quantized

__all__ = ["Plan", "Search"]


_BESIDE_CHARACTERS: Final = 1 << 20
"""Of neighbours, for all hits of a search together: the best have theirs, those behind none."""
_BESIDE_COSTS: Final = 200
"""What one counts for however short it is: it takes time to find."""


@dataclass
class Plan:
    """A search under way."""

    question: IndexQuestion
    understood: Understood
    terms: Mapping[str, str]
    """What is looked for by words: key -> quoted FTS5 string."""
    matches: Matches | None = None
    lacks_vectors: bool = False
    """The query's vector met none: nothing of what it was ranked among has one of its model."""


class Search:
    """Plans, matches and ranks."""

    def __init__(
        self, db: apsw.Connection, rows: DocumentRows, vectors: VectorRows, catalogue: Catalogue
    ) -> None:
        self._scopes = Scopes(db, rows, catalogue)
        self._vectors = vectors
        self._lexical = Lexical(db, rows)
        self.texts = Texts(db, self._lexical.tokenize)

    # -- the question --------------------------------------------------------------------------

    def plan(self, question: IndexQuestion) -> Plan:
        """A search by words takes the query as it is.

        For one by meaning names are taken out too: vectors are of texts without their producers.
        """
        if question.mode is SearchMode.WORDS:
            terms = terms_of(question.query, self._lexical.tokenize)
            return Plan(question, Understood(text=question.query), terms)
        understood = understand(question, self._scopes.of(question), self._lexical)
        terms = content_words(terms_of(understood.text, self._lexical.tokenize))
        return Plan(question, understood, terms)

    # -- words ---------------------------------------------------------------------------------

    def match(self, plan: Plan) -> None:
        """Keep in the plan what its words find; a search by meaning needs none of it."""
        if plan.question.mode is not SearchMode.MEANING:
            plan.matches = self._match(plan)

    def _match(self, plan: Plan) -> Matches:
        question = plan.question
        is_hybrid = question.mode is SearchMode.HYBRID
        where = [
            (scope, scope.context if is_hybrid else scope.candidates)
            for scope in self._scopes.of(question)
        ]
        return self._lexical.match(plan.terms, where, question.limit)

    # -- ranking -------------------------------------------------------------------------------

    def rank(self, plan: Plan, vector: IndexVectors | None) -> list[IndexHit]:
        """The best cubes, each by its best passage, best first; among equals the newest."""
        query = self._comparable(vector)
        scopes = self._scopes.of(plan.question)
        plan.lacks_vectors = vector is not None and _lacks_vectors(scopes, query)
        hits, room = [], _BESIDE_CHARACTERS
        for ranked in best_cubes(self._worths(plan, scopes, query), plan.question.limit):
            beside = plan.question.beside if room > 0 else 0
            hit = self.texts.hit(ranked, plan.terms.keys(), beside)
            room -= sum(len(each.text) + _BESIDE_COSTS for each in hit.beside)
            hits.append(hit)
        return hits

    def _worths(self, plan: Plan, scopes: Sequence[Scope], query: Quantized | None) -> list[Worth]:
        mode = plan.question.mode
        if mode is SearchMode.MEANING:  # which finds nothing that has no vector
            return [] if query is None else by_meaning(scopes, query)
        matches = plan.matches or self._match(plan)
        if mode is not SearchMode.HYBRID:
            return by_words(scopes, matches)
        sense = Sense(plan.understood, query, self._vectors)
        return by_all(scopes, matches, sense, plan.question.weights)

    def _comparable(self, vector: IndexVectors | None) -> Quantized | None:
        """The query's vector, where it is of the model whose vectors are here."""
        _, fingerprint, dimensions = self._vectors.model
        if vector is None or (vector.model, vector.dimensions) != (fingerprint, dimensions):
            return None
        query = quantized(vector)
        return query if len(query.steps) else None


def _lacks_vectors(scopes: Sequence[Scope], query: Quantized | None) -> bool:
    """Is there something to be found, and none of it comparable? As after a change of model."""
    found = [scope for scope in scopes if scope.candidates.any()]
    if query is None:
        return bool(found)
    return bool(found) and not any(
        (scope.candidates & scope.columns["has_vector"]).any() for scope in found
    )
