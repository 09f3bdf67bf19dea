"""Recall: one search, from the request to the hits that its caller may see.

The index ranks what the caller may read and nothing else, so that what is hidden leaves no trace;
here every hit is held against the table once more, for the index may be a moment old. The query's
vector is made by a worker while the index looks for the words; a search waits for it as long as
the caller allows, then words decide and the reply says so. Kernel thread only.
"""

from collections.abc import Iterator
from functools import partial
from itertools import islice
from typing import Final

from libmem.abi.calls import Search, SearchReply
from libmem.abi.errors import Errno, MemError
from libmem.abi.index import (
    IndexFilter,
    IndexHit,
    IndexQuestion,
    IndexVectors,
    IndexWeights,
)
from libmem.abi.limits import BESIDE_MAX, HITS_MAX, QUERY_MAX_CHARS, SEARCH_WAIT_MAX_MS
from libmem.abi.names import NameRef, namespace_of, parse_subtree
from libmem.abi.structs import Beside, Hit, SearchMode
from memosd.kernel.access import EXECUTE, READ, Identity, allows
from memosd.kernel.cubes import Cubes
from memosd.kernel.embedding import Embedding, QueryVector
from memosd.kernel.events import is_under
from memosd.kernel.indexer import Indexer
from memosd.kernel.parts import Parts
from memosd.kernel.ports import IndexPlan
from memosd.kernel.rows import CubeRow
from memosd.kernel.session import Session

__all__ = ["Recall", "spaces_under"]

_SLACK: Final = 16
"""Hits that may turn out to be gone before the index is asked for more."""
_CANDIDATES_MAX: Final = 16_384
_TOKEN_BYTES: Final = 4
"""Bytes of UTF-8 that a token stands for: four letters of English, a character and a bit of
Chinese."""
_NS_PER_MS: Final = 1_000_000
_NS: Final = 1_000_000_000
_EVER: Final = -1
_NO_VECTORS: Final = {
    SearchMode.HYBRID: "ranked by words alone: what was searched has no vectors yet",
    SearchMode.MEANING: "what was searched has no vectors yet",
    SearchMode.WORDS: "",
}
_TIME_MAX_NS: Final = (1 << 63) - 1


class Recall:
    """`search`."""

    def __init__(self, parts: Parts, cubes: Cubes, indexer: Indexer, embedding: Embedding) -> None:
        self._parts = parts
        self._cubes = cubes
        self._indexer = indexer
        self._embedding = embedding

    async def search(self, session: Session, request: Search) -> SearchReply:
        """Errors: as its row says."""
        who = session.identity
        under = parse_subtree(request.under)
        _check(request)
        question = self._question(who, request, under)
        if not question.spaces:
            return SearchReply(hits=())
        behind = await self._indexer.catch_up()
        if behind:  # what stands beside a hit may be of a text that is gone by now
            question = question._replace(beside=0)
        openings = self._indexer.openings
        plan = await self._indexer.ask(self._indexer.index.plan, question)
        vector, notice = await self._match(session, request, question, plan)
        found = await self._indexer.ask(self._indexer.index.rank, plan, vector)
        visible = partial(self._visible, who, under, is_behind=bool(behind))
        hits = list(islice(visible(found), request.k))
        while len(hits) < request.k and len(found) >= question.limit < _CANDIDATES_MAX:
            # What went since the index saw it was dropped: look further down the ranking.
            question = question._replace(limit=4 * question.limit)
            plan = await self._indexer.ask(self._indexer.index.plan, question)
            await self._indexer.ask(self._indexer.index.match, plan)
            found = await self._indexer.ask(self._indexer.index.rank, plan, vector)
            hits = list(islice(visible(found), request.k))
        if self._indexer.openings != openings:
            raise MemError(Errno.EAGAIN, "the index was opened again under the search")
        if request.budget_tokens:
            hits = list(_within(hits, request.budget_tokens))
        if plan.lacks_vectors:
            notice = _NO_VECTORS[request.mode]
        notices = "; ".join(filter(None, (behind, notice)))
        return SearchReply(hits=tuple(hits), understood=plan.understood, notice=notices)

    def _question(self, who: Identity, request: Search, under: str) -> IndexQuestion:
        wall_ns = self._parts.clock.wall_ns()
        return IndexQuestion(
            query=request.query,
            spaces=spaces_under(self._parts, who, under),
            limit=request.k + _SLACK,
            may_read=partial(_may_read, who),
            mode=request.mode,
            filter=IndexFilter(
                types=request.types,
                semantic_types=request.semantic_types,
                producers=request.producers,
                sessions=request.sessions,
                event_from_ns=request.event_from_ns,
                event_to_ns=request.event_to_ns,
                valid_at_ns=0 if request.as_of_ns == _EVER else request.as_of_ns or wall_ns,
            ),
            weights=IndexWeights(
                recency=request.recency,
                half_life_ns=int(request.half_life_s * _NS),
                importance=request.importance,
                at_ns=request.now_ns or wall_ns,
            ),
            now_ns=request.now_ns,
            beside=request.beside,
        )

    # -- the query's vector --------------------------------------------------------------------

    async def _match(
        self, session: Session, request: Search, question: IndexQuestion, plan: IndexPlan
    ) -> tuple[IndexVectors | None, str]:
        """Find by words while a worker makes the vector; what it made, else why not."""
        coming, notice = self._ask_for_vector(session.identity.uid, request, plan.understood.text)
        if coming is not None:
            session.on_end.add(coming.cancel)  # lest the searches of the dead fill the queue
        begun_ns = self._parts.clock.monotonic_ns()
        try:
            await self._indexer.ask(self._indexer.index.match, plan)
            if coming is None:
                return None, notice
            left_ns = begun_ns + request.wait_ms * _NS_PER_MS - self._parts.clock.monotonic_ns()
            is_there = await coming.is_there_within(self._parts.timers, max(0, left_ns))
        finally:
            if coming is not None:
                session.on_end.discard(coming.cancel)
                coming.cancel()
        try:
            if not is_there:
                reason = self._embedding.problem or f"no vector within {request.wait_ms} ms"
                raise MemError(Errno.EAGAIN, reason)
            vector = coming.result()
            await self._embedding.use(vector.model, coming.job)
            return vector, ""
        except MemError as error:
            return None, self._without(request, error)

    def _ask_for_vector(
        self, uid: int, request: Search, text: str
    ) -> tuple[QueryVector | None, str]:
        """The vector on its way, or why there will be none."""
        is_words_only = self._parts.parameters.is_words_only
        if request.mode is SearchMode.HYBRID and is_words_only:
            return None, ""
        if request.mode is SearchMode.WORDS or not text.strip():
            return None, ""
        try:
            return self._embedding.of_query(text, uid), ""
        except MemError as error:
            return None, self._without(request, error)

    @staticmethod
    def _without(request: Search, error: MemError) -> str:
        """The notice of a search that has to do with words. Errors: the same, where it cannot."""
        if request.mode is SearchMode.MEANING:
            raise error
        return f"ranked by words alone: {error.message}"

    # -- what the caller sees ------------------------------------------------------------------

    def _visible(
        self, who: Identity, under: str, found: list[IndexHit], *, is_behind: bool
    ) -> Iterator[Hit]:
        rank = 0
        for candidate in found:
            row = self._cubes.readable_row(who, candidate.id)
            if row is None or not is_under(row.name, under):
                continue
            if row.current.payload_id in self._parts.table.outdated:
                continue
            if is_behind and not self._shows(row, candidate.version):
                continue  # its words are not what the cube says any more
            rank += 1
            beside = tuple(self._beside(who, candidate))
            yield Hit(
                name=row.name,
                id=candidate.id,
                version=candidate.version,
                score=candidate.score,
                rank=rank,
                snippet=candidate.snippet,
                signals=dict(candidate.signals),
                tokens=_tokens(candidate.passage) + sum(_tokens(each.text) for each in beside),
                beside=beside,
            )

    def _shows(self, row: CubeRow, version: int) -> bool:
        """Has this version the payload of the current one?"""
        try:
            cube = self._parts.table.resolve(NameRef(row.name, version))
        except MemError:
            return False
        return cube.key == row.current.payload_id

    def _beside(self, who: Identity, hit: IndexHit) -> Iterator[Beside]:
        for each in hit.beside:
            row = self._cubes.readable_row(who, each.id)
            if row is not None and row.current.payload_id not in self._parts.table.outdated:
                yield Beside(row.name, each.distance, each.text, each.producer)


def spaces_under(parts: Parts, who: Identity, under: str) -> dict[int, str]:
    """Namespace number -> the prefix that names must have there.

    Errors: ENOENT, EACCES (the namespace of `under`).
    """
    if under == "/":
        return {space.id: "" for space in parts.namespaces if space.allows(who, EXECUTE)}
    space = parts.namespaces.find(namespace_of(under))
    space.require(who, EXECUTE)
    return {space.id: "" if under == space.row.name else under}


def _may_read(who: Identity, owner: tuple[int, int], mode: int) -> bool:
    return allows(who, owner, mode, READ)


def _tokens(text: str) -> int:
    return -(-len(text.encode("utf-8", "replace")) // _TOKEN_BYTES)


def _within(hits: list[Hit], budget_tokens: int) -> Iterator[Hit]:
    """The best that fit together; one that is too long leaves its room to those behind it."""
    left = budget_tokens
    for hit in hits:
        if hit.tokens <= left:
            left -= hit.tokens
            yield hit


def _check(request: Search) -> None:
    """Errors: EINVAL."""
    _require(1 <= request.k <= HITS_MAX, f"k is within 1..{HITS_MAX}")
    _require(0 <= request.beside <= BESIDE_MAX, f"beside is within 0..{BESIDE_MAX}")
    _require(
        0 <= request.wait_ms <= SEARCH_WAIT_MAX_MS, f"wait_ms is within 0..{SEARCH_WAIT_MAX_MS}"
    )
    _require(request.budget_tokens >= 0, "budget_tokens is not negative")
    _require(abs(request.now_ns) <= _TIME_MAX_NS, "now_ns is a time, in 64 bits")
    _require(request.as_of_ns >= _EVER, "as_of_ns is a time, 0 or -1")
    for field in ("recency", "importance"):
        _require(0 <= getattr(request, field) <= 1, f"{field} is within 0..1")
    _require(0 < request.half_life_s <= 1e9, "half_life_s is within 0..1e9")
    if len(request.query) > QUERY_MAX_CHARS:
        raise MemError(
            Errno.EINVAL,
            f"a query has at most {QUERY_MAX_CHARS} characters",
            characters=len(request.query),
        )


def _require(is_right: bool, rule: str) -> None:
    if not is_right:
        raise MemError(Errno.EINVAL, rule)
