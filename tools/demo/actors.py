"""The demo's other processes: each role is one unrelated program that only shares the daemon.

`python -m memosd.tools.demo.actors ROLE ARGUMENTS...` plays a role against the daemon that
MEMOSD_RUNTIME_DIR names and prints what it did as JSON lines. Roles know nothing of each other;
what they claim is checked by the demo itself.
"""

import json
import os
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Final

import libmem
from libmem.abi.calls import Search, WriteCube
from libmem.abi.digest import digest_of
from libmem.abi.index import HIT_END, HIT_START
from libmem.abi.structs import CubeType, Descriptive, SearchMode
from libmem.ingest import Turn, conversation, file
from memosd.tools.demo.documents import Document, gather
from memosd.tools.demo.remembering import HANDBOOK, TALK, TALKS, session_of, time_ns

__all__ = ["ROLES"]

_BATCH_CALLS: Final = 64
_BATCH_BYTES: Final = 1 << 20
_ATTACHES: Final = 20
_COPIES: Final = 5
_REPORT_EVERY: Final = 23
_PAGE_BYTES: Final = 1 << 20
_SHOWN: Final = ("words", "meaning", "before", "after", "session", "producer", "date")
"""Signals of a hit that are told."""


def say(**facts: Any) -> None:
    """One line for the demo, at once."""
    print(json.dumps({"pid": os.getpid(), **facts}), flush=True)


def ingest() -> None:
    """Write every document, many per round trip; each batch is durable when it is answered."""
    documents = gather()
    begin = time.perf_counter()
    with libmem.connect(name="demo ingest") as client:
        for batch in _batches(documents):
            for result in client.batch([_write(document) for document in batch]):
                if isinstance(result, libmem.MemError):
                    raise result
    seconds = time.perf_counter() - begin
    say(cubes=len(documents), size_bytes=sum(len(item.text) for item in documents), seconds=seconds)


def _batches(documents: list[Document]) -> Iterator[list[Document]]:
    batch: list[Document] = []
    size_bytes = 0
    for document in documents:
        if batch and (len(batch) == _BATCH_CALLS or size_bytes + len(document.text) > _BATCH_BYTES):
            yield batch
            batch, size_bytes = [], 0
        batch.append(document)
        size_bytes += len(document.text)
    yield batch


def _write(document: Document) -> WriteCube:
    about = Descriptive(title=document.path.name, origin=str(document.path))
    return WriteCube(name=document.name, payload=document.text, descriptive=about)


def search(*queries: str) -> None:
    """Answer each query with its best cubes."""
    with libmem.connect(name="demo search") as client:
        for query in queries:
            begin = time.perf_counter()
            hits = client.search(query, k=3, mode=SearchMode.WORDS)
            milliseconds = (time.perf_counter() - begin) * 1000
            found = [{"name": hit.name, "snippet": hit.snippet} for hit in hits]
            say(query=query, milliseconds=milliseconds, hits=found)


def tell() -> None:
    """Write a conversation down, turn by turn as it was said."""
    begin = time.perf_counter()
    with libmem.connect(name="demo tell") as client:
        for day in dict.fromkeys(said.day for said in TALK):
            turns = [
                Turn(said.text, producer=said.producer, event_time_ns=time_ns(day))
                for said in TALK
                if said.day == day
            ]
            conversation(client, TALKS, turns, session=session_of(day))
    say(turns=len(TALK), milliseconds=(time.perf_counter() - begin) * 1000)


def study(*files: str) -> None:
    """Make memories of documents, twice."""
    with libmem.connect(name="demo study") as client:
        begin = time.perf_counter()
        written = sum(file(client, HANDBOOK, Path(each)).written for each in files)
        milliseconds = (time.perf_counter() - begin) * 1000
        again = sum(file(client, HANDBOOK, Path(each)).written for each in files)
    say(written=written, again=again, milliseconds=milliseconds)


def recall(under: str, *questions: str) -> None:
    """Answer each question with the memory that answers it, and what stands just before."""
    with libmem.connect(name="demo recall") as client:
        for question in questions:
            begin = time.perf_counter()
            request = Search(question, under=under, k=1, beside=1, wait_ms=30_000)
            hits = client.call(request, timeout_s=60.0).hits
            milliseconds = (time.perf_counter() - begin) * 1000
            say(milliseconds=milliseconds, **(_cited(client, hits[0]) if hits else {"name": ""}))


def _cited(client: libmem.Client, hit: libmem.Hit) -> dict[str, str]:
    about = client.stat(hit.name).descriptive
    before = next((each for each in hit.beside if each.distance < 0 and each.producer), None)
    text = hit.snippet.replace(HIT_START, "").replace(HIT_END, "")
    signals = [f"{name} {hit.signals[name]:.2f}" for name in _SHOWN if name in hit.signals]
    return {
        "name": hit.name,
        "text": " ".join(f"{about.producer}: {text}".removeprefix(": ").split()),
        "before": f"{before.producer}: {before.text}" if before else "",
        "cited": f"{Path(about.origin).name}, “{about.title}”" if about.title else hit.name,
        "why": " ".join(signals),
    }


def fill(name: str, size_bytes: str) -> None:
    """Make a large cube in place, in memory that becomes the cube itself."""
    seed = os.urandom(_PAGE_BYTES)
    begin = time.perf_counter()
    with libmem.connect(name="demo fill") as client:
        with client.create(name, int(size_bytes), type=CubeType.BLOB) as frame:
            for number, at in enumerate(range(0, frame.size_bytes, _PAGE_BYTES)):
                page = number.to_bytes(8, "little") + seed[8:]  # no two pages are alike
                frame.buffer[at : at + _PAGE_BYTES] = page[: frame.size_bytes - at]
        milliseconds = (time.perf_counter() - begin) * 1000
        digest = client.stat(name).digest.hex()
    say(milliseconds=milliseconds, digest=digest)


def attach(name: str) -> None:
    """Map a cube again and again, then copy it as often; check every byte once."""
    with libmem.connect(name="demo attach") as client:
        attaches = [_attach_ms(client, name) for _ in range(_ATTACHES)]
        copies = [_copy_ms(client, name) for _ in range(_COPIES)]
        with client.map(name) as mapping, memoryview(mapping) as view:
            digest = digest_of(view).hex()
            is_read_only = view.readonly
    say(
        attach_ms=statistics.median(attaches),
        first_ms=attaches[0],
        copy_ms=statistics.median(copies),
        digest=digest,
        is_read_only=is_read_only,
    )


def _attach_ms(client: libmem.Client, name: str) -> float:
    begin = time.perf_counter()
    with client.map(name) as mapping:
        _ends = mapping[0], mapping[-1]
        return (time.perf_counter() - begin) * 1000


def _copy_ms(client: libmem.Client, name: str) -> float:
    begin = time.perf_counter()
    payload = client.read(name)
    _ends = payload[0], payload[-1]
    return (time.perf_counter() - begin) * 1000


def count(name: str, times: str) -> None:
    """Add one to a number, often, while others do the same: compare-and-swap on the version."""
    conflicts = 0
    with libmem.connect(name="demo count") as client:
        for _ in range(int(times)):
            while not _add_one(client, name):
                conflicts += 1
    say(added=int(times), conflicts=conflicts)


def _add_one(client: libmem.Client, name: str) -> bool:
    """False when somebody else wrote in between, and nothing was changed."""
    version = client.stat(name).version
    number = int(client.read(f"{name}@v{version}"))
    try:
        client.write(name, str(number + 1), expected_version=version)
    except libmem.MemError as error:
        if error.errno is not libmem.Errno.EVERSION:
            raise
        return False
    return True


def stream(folder: str) -> None:
    """Write without end and say what was acknowledged, until the daemon dies."""
    number = 0
    with libmem.connect(name="demo stream") as client:
        while True:
            number += 1
            try:
                client.write(
                    f"{folder}/{number:06}", f"thought number {number}", expected_version=0
                )
            except libmem.MemError as error:
                say(acknowledged=number - 1, error=error.errno.name)
                return
            if number % _REPORT_EVERY == 0:
                say(acknowledged=number)


ROLES: Final[dict[str, Callable[..., None]]] = {
    role.__name__: role
    for role in (ingest, search, tell, study, recall, fill, attach, count, stream)
}


if __name__ == "__main__":
    ROLES[sys.argv[1]](*sys.argv[2:])
