"""`recall`: how much of what a question needs is among the first hits, and how soon.

Conversations whose questions cite the turns that answer them are written through libmem, each in a
namespace of its own, one cube a turn; every question is asked through `search`. Recall at k is the
share of a question's cited turns among the first k hits, averaged over the questions. The peers
answer in the same run: BM25 (`mode="words"`), the cosines of the same model's vectors of
`speaker: text` and of the whole question (as the usual vector store would have it), and the fusion
of both by reciprocal rank. The conversations are the user's (`--data`): memosd comes with none, and
has no setting for any.
"""

import os
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from typing import Final, NamedTuple, Unpack

import numpy as np
from numpy.typing import NDArray

import libmem
from libmem.abi.calls import Search, WriteCube
from libmem.abi.errors import Errno, MemError
from libmem.abi.structs import Descriptive, SearchMode
from libmem.options import SearchOptions
from memosd.drivers.plaintext.bottom import Embedder
from memosd.tools.bench.conversations import (
    CATEGORIES,
    Conversation,
    Question,
    Turn,
    read_conversations,
)
from memosd.tools.bench.daemon import Daemon, private_daemon
from memosd.tools.bench.report import Bar, Report, Row, at_least, at_most, row
from memosd.tools.bench.samples import percentile
from memosd.tools.bench.writes import write_all
from memosd.tools.models.cache import find_model
from memosd.tools.models.catalogue import MINILM

__all__ = [
    "FULL",
    "QUICK",
    "Plan",
    "complete_hits",
    "measure",
    "wait_for_vectors",
    "write_turns",
]

_DEPTHS: Final = (5, 10, 20)
_FUSED: Final = 100
"""Hits of each peer that their fusion sees."""
_RRF_K: Final = 60
"""As in Cormack, Clarke and Büttcher, SIGIR 2009."""
_BATCH: Final = 64
_MANY: Final = "/many"
_EMBED_S: Final = 3600.0
_POLL_S: Final = 0.1


@dataclass(frozen=True)
class Plan:
    data: Path | None = None
    """The conversations, in the JSON of LoCoMo."""
    memories: int = 5000
    """How many a search is timed among."""
    questions: int | None = None
    """Of each conversation; None: all."""


FULL = Plan()
QUICK = Plan(memories=1000, questions=20)

Ranking = Callable[[str, int], list[str]]
"""(question, depth) -> ids of turns, best first; of one conversation."""


class _Asked(NamedTuple):
    """What one ranking found for one question: recall at each depth."""

    category: int
    recall: tuple[float, ...]


def measure(plan: Plan, directory: Path) -> Report:
    """Ask every question of every ranking. Errors: ENOENT, EINVAL (the data), EOPNOTSUPP."""
    if plan.data is None:
        raise MemError(Errno.EINVAL, "`recall` needs conversations: --data FILE")
    conversations = read_conversations(plan.data)
    with private_daemon(directory, embedder="auto") as daemon:
        daemon.start()
        with daemon.connect(timeout_s=120) as client:
            for conversation in conversations:
                write_turns(client, _space(conversation), conversation.turns)
            lag_s = wait_for_vectors(client)
            found = _ask(client, plan, conversations)
            times_ms = _times(client, plan, conversations)
        rss_mib = _rss_mib(daemon)
        daemon.stop()
    rows = (
        *_rows(found, times_ms),
        row("embed_s", lag_s, "until every turn of the conversations had its vectors"),
        row("rss_mib", rss_mib, f"daemon and worker, {plan.memories:,} more memories"),
    )
    return Report("recall", rows, _notes(conversations))


def write_turns(client: libmem.Client, space: str, turns: Sequence[Turn]) -> None:
    """Write turns as cubes `/space/<session>/<position>`, many at a time."""
    client.make_namespace(space)
    write_all(client, [_write(space, turn) for turn in turns], _BATCH)


def wait_for_vectors(client: libmem.Client) -> float:
    """Wait until nothing is left to embed; the seconds that took. Errors: EOPNOTSUPP, ETIMEDOUT."""
    client.search("settled", mode=SearchMode.WORDS)  # the index knows all that was written
    begun = time.perf_counter()
    while (stat := client.info().recall).waiting or not stat.embedder:
        if time.perf_counter() - begun > _EMBED_S:
            raise MemError(Errno.ETIMEDOUT, f"{stat.waiting} passages wait: {stat.problem}")
        if stat.problem and not stat.embedder:
            raise MemError(Errno.EOPNOTSUPP, stat.problem)
        time.sleep(_POLL_S)
    return time.perf_counter() - begun


def complete_hits(client: libmem.Client, query: str, **options: Unpack[SearchOptions]) -> list[str]:
    """The names of the hits, best first. Errors: EIO where the ranking had to do without a vector,
    which finds less and sooner than what is measured."""
    reply = client.call(Search(query, **options))
    if reply.notice:
        raise MemError(Errno.EIO, f"not what is measured: {reply.notice}")
    return [hit.name for hit in reply.hits]


def _space(conversation: Conversation) -> str:
    return f"/{conversation.name}"


def _write(space: str, turn: Turn) -> WriteCube:
    described = Descriptive(
        producer=turn.speaker,
        session=turn.session,
        position=turn.position,
        event_time_ns=turn.time_ns,
    )
    return WriteCube(_name(space, turn), turn.text.encode(), descriptive=described)


def _name(space: str, turn: Turn) -> str:
    return f"{space}/{turn.session}/{turn.position:04}"


# -- the rankings ------------------------------------------------------------------------------


def _ask(
    client: libmem.Client, plan: Plan, conversations: list[Conversation]
) -> dict[str, list[_Asked]]:
    """Every question of every conversation, by ranking."""
    embedder = Embedder(str(find_model(MINILM)), threads=len(os.sched_getaffinity(0)))
    found: dict[str, list[_Asked]] = {}
    for conversation in conversations:
        for name, ranking in _rankings(client, conversation, embedder).items():
            asked = [
                _Asked(question.category, tuple(_recalls(ranking, question)))
                for question in conversation.questions[: plan.questions]
            ]
            found.setdefault(name, []).extend(asked)
    return found


def _recalls(ranking: Ranking, question: Question) -> Iterator[float]:
    for depth in _DEPTHS:
        hits = set(ranking(question.text, depth))
        yield len(hits & question.gold) / len(question.gold)


def _rankings(
    client: libmem.Client, conversation: Conversation, embedder: Embedder
) -> dict[str, Ranking]:
    """Ours and its peers."""
    space = _space(conversation)
    ids = {_name(space, turn): turn.id for turn in conversation.turns}
    dense = _dense(conversation, embedder)

    def search(text: str, depth: int, mode: SearchMode = SearchMode.HYBRID) -> list[str]:
        return [ids[name] for name in complete_hits(client, text, under=space, k=depth, mode=mode)]

    def words(text: str, depth: int) -> list[str]:
        return search(text, depth, SearchMode.WORDS)

    def fused(text: str, depth: int) -> list[str]:
        scores: dict[str, float] = {}
        for peer in (words, dense):
            for rank, name in enumerate(peer(text, _FUSED), 1):
                scores[name] = scores.get(name, 0.0) + 1 / (_RRF_K + rank)
        return sorted(scores, key=lambda name: -scores[name])[:depth]

    return {"hybrid": search, "bm25": words, "dense": dense, "rrf": fused}


def _dense(conversation: Conversation, embedder: Embedder) -> Ranking:
    """Cosines of whole vectors, without an index."""
    turns = conversation.turns
    vectors = _vectors(embedder, [f"{turn.speaker}: {turn.text}" for turn in turns])

    def rank(text: str, depth: int) -> list[str]:
        cosines = vectors @ _vectors(embedder, [text])[0]
        return [turns[at].id for at in np.argsort(-cosines, kind="stable")[:depth]]

    return rank


def _vectors(embedder: Embedder, texts: list[str]) -> NDArray[np.float32]:
    result = embedder.embed(texts, has_pieces=False)
    return np.frombuffer(result.vectors, "<f4").reshape(len(texts), result.dimensions)


# -- time --------------------------------------------------------------------------------------


def _times(client: libmem.Client, plan: Plan, conversations: list[Conversation]) -> list[float]:
    """ms of each question among `plan.memories` memories of one namespace, asked one by one."""
    copies = -(-plan.memories // sum(len(one.turns) for one in conversations))
    turns = [
        turn._replace(session=f"{copy}-{conversation.name}-{turn.session}")
        for copy in range(copies)
        for conversation in conversations
        for turn in conversation.turns
    ]
    write_turns(client, _MANY, turns[: plan.memories])
    wait_for_vectors(client)
    times = []
    for question in _questions(plan, conversations):
        before = time.perf_counter()
        hits = complete_hits(client, question, under=_MANY, k=10)
        times.append((time.perf_counter() - before) * 1e3)
        if not hits:
            raise MemError(Errno.EIO, f"nothing was found for {question!r}")
    return times


def _questions(plan: Plan, conversations: list[Conversation]) -> Iterator[str]:
    for conversation in conversations:
        yield from (question.text for question in conversation.questions[: plan.questions])


def _rss_mib(daemon: Daemon) -> float:
    with daemon.connect() as client:
        info = client.info()
    return (info.rss_bytes + sum(worker.rss_bytes for worker in info.workers)) / 2**20


# -- the report --------------------------------------------------------------------------------


def _rows(found: dict[str, list[_Asked]], times_ms: list[float]) -> Iterator[Row]:
    for name, asked in found.items():
        for at, depth in enumerate(_DEPTHS):
            is_ours = name == "hybrid"
            field = f"recall_at_{depth}" if is_ours else f"{name}_at_{depth}"
            bar: Bar | None = at_least(0.77) if is_ours and depth == 10 else None
            by_category = ", ".join(
                f"{what} {fmean(one.recall[at] for one in asked if one.category == number):.3f}"
                for number, what in CATEGORIES.items()
                if any(one.category == number for one in asked)
            )
            yield row(field, fmean(one.recall[at] for one in asked), by_category, bar)
    yield row("search_ms_p50", percentile(times_ms, 0.5), "query's vector included", at_most(25))
    yield row("search_ms_p99", percentile(times_ms, 0.99), "the same", at_most(60))


def _notes(conversations: list[Conversation]) -> tuple[str, ...]:
    turns = sum(len(conversation.turns) for conversation in conversations)
    questions = sum(len(conversation.questions) for conversation in conversations)
    return (
        f"{len(conversations)} conversations, {turns:,} turns, {questions} questions with evidence",
        "dense: the same model's vectors of `speaker: text`; rrf: the first 100 of bm25 and dense",
        "no setting is chosen for this data by this benchmark; docs/design/0005 says what was",
    )
