"""`make demo`: unrelated processes share memories through a daemon, which is then killed.

Owns the story: each step lets other processes act, says what they did and verifies it. Exit
status 1 when anything is not as told. Entry point: `python -m memosd.tools.demo`; with `--life` it
also trains a memory into an adapter and corrects it, which takes minutes.
"""

import signal
import sys
import time
from typing import Final

from libmem.abi.calls import StatCube
from libmem.abi.digest import digest_of
from libmem.abi.errors import Errno, MemError
from libmem.abi.structs import SearchMode
from memosd.tools.demo.documents import LIBRARY, Document, gather
from memosd.tools.demo.life import play_life
from memosd.tools.demo.reading import play_reading
from memosd.tools.demo.remembering import ask_again, play_remembering
from memosd.tools.demo.stage import Stage

__all__ = ["main"]

MIB: Final = 1 << 20
_LARGE: Final = "/workshop/kv-cache"
_LARGE_BYTES: Final = 94 * MIB
_COUNTER: Final = "/workshop/counter"
_ADDITIONS: Final = 60
_THOUGHTS: Final = "/workshop/thoughts"
_ENOUGH_THOUGHTS: Final = 400
_QUERIES: Final = {
    "patent license": ("patent", "license"),
    "warranty of merchantability": ("warrant", "merchant"),
    "modify the source code": ("modif", "source"),
}
"""Queries, and the words (or stems) that the best hit must therefore hold."""

Digests = dict[str, bytes]


def main() -> int:
    """Play the demo; 0 when all of it was true."""
    begin = time.perf_counter()
    try:
        with Stage() as stage:
            _play(stage, has_life="--life" in sys.argv[1:])
            seconds = time.perf_counter() - begin
            stage.title(
                f"\nAll of it was true: {stage.verified} claims verified in {seconds:.1f} s.",
                "Nothing is left behind: the daemon is stopped, its directory removed.",
            )
    except MemError as error:
        print(f"demo: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130
    return 0


def _play(stage: Stage, *, has_life: bool) -> None:
    stage.title("memosd: a memory kernel for language-model programs", "Every number is measured.")
    _start(stage)
    is_remembered = play_remembering(stage)
    documents = gather()
    library = _ingest(stage, documents)
    best = _search(stage)
    large_digest = _share(stage)
    play_reading(stage)
    if has_life:
        play_life(stage)
    _count(stage)
    thoughts = _cut_off(stage)
    _return(stage, library, thoughts, (best, large_digest))
    if is_remembered:
        ask_again(stage)
    _stop(stage)


def _start(stage: Stage) -> None:
    stage.step("A daemon starts, in a directory of its own")
    pid, seconds = stage.start_daemon()
    stage.tell(pid, f"memosd --user answers after {seconds * 1000:.0f} ms")
    with stage.connect() as client:
        client.make_namespace(LIBRARY)
        client.make_namespace("/workshop")
        stage.verify(client.info().cubes == 0, "it remembers nothing yet")


def _ingest(stage: Stage, documents: list[Document]) -> Digests:
    """Returns what must be there from now on: names and digests."""
    stage.step("One process writes real documents")
    actor = stage.actor("ingest")
    did = actor.result()
    stage.tell(
        actor.pid,
        f"wrote {did['cubes']} documents, {did['size_bytes'] / MIB:.1f} MiB, in "
        f"{did['seconds']:.2f} s: {did['cubes'] / did['seconds']:,.0f} durable cubes/s",
    )
    expected = {document.name: digest_of(document.text) for document in documents}
    stage.verify(
        _digests(stage, LIBRARY) == expected,
        f"all {len(expected)} are listed, each with the digest of the file it came from",
    )
    return expected


def _digests(stage: Stage, folder: str) -> Digests:
    with stage.connect() as client:
        return {stat.name: stat.digest for stat in client.list(folder, is_recursive=True)}


def _search(stage: Stage) -> list[str]:
    """Returns the best hits' names."""
    stage.step("Another process finds them by their words")
    actor = stage.actor("search", *_QUERIES)
    best = []
    with stage.connect() as client:
        for answer in actor.lines():
            words = _QUERIES[answer["query"]]
            hit = answer["hits"][0] if answer["hits"] else {"name": "nothing", "snippet": ""}
            stage.tell(
                actor.pid,
                (answer["query"], "bold"),
                f"  ->  {hit['name']}  ({answer['milliseconds']:.1f} ms)",
            )
            stage.quote(*_marked(hit["snippet"]))
            text = client.read(hit["name"]).decode().lower() if answer["hits"] else ""
            stage.verify(
                bool(text) and all(word in text for word in words),
                f"that document holds {' and '.join(f'{word}…' for word in words)}",
            )
            best.append(hit["name"])
    _search_at_once(stage)
    return best


def _marked(snippet: str) -> list[tuple[str, str]]:
    """The snippet on one line, the matched words between U+0002 and U+0003 in colour."""
    parts = [("“", "dim")]
    for piece in " ".join(snippet.split()).split("\x02"):
        word, mark, rest = piece.partition("\x03")
        parts += [(word, "yellow"), (rest, "dim")] if mark else [(piece, "dim")]
    return [*parts, ("”", "dim")]


def _search_at_once(stage: Stage) -> None:
    name, word = "/workshop/note", "quokkapotamus"
    with stage.connect() as client:
        client.write(name, f"The {word} was invented a moment ago.")
        actor = stage.actor("search", word)
        found = [hit["name"] for hit in actor.result()["hits"]]
        client.unlink(name)
        left = client.search(word, mode=SearchMode.WORDS)
    stage.verify(
        found == [name] and not left,
        "what is written is found by the next search of another process, what is removed by none",
    )


def _share(stage: Stage) -> str:
    """Returns the large cube's digest."""
    stage.step("A large memory made by one process is mapped by another")
    writer = stage.actor("fill", _LARGE, str(_LARGE_BYTES))
    made = writer.result()
    stage.tell(
        writer.pid,
        f"filled {_LARGE_BYTES // MIB} MiB in place and sealed it: {made['milliseconds']:.0f} ms, "
        "durable",
    )
    reader = stage.actor("attach", _LARGE)
    seen = reader.result()
    ratio = seen["copy_ms"] / seen["attach_ms"]
    stage.tell(
        reader.pid,
        "mapped it in ",
        (f"{seen['attach_ms']:.2f} ms", "bold"),
        f"; a copy of it took {seen['copy_ms']:.1f} ms, {ratio:,.0f} times as long",
    )
    stage.verify(seen["digest"] == made["digest"], "every byte is the writer's")
    stage.verify(seen["is_read_only"], "the mapping cannot be written: the memory is sealed")
    return str(made["digest"])


def _count(stage: Stage) -> None:
    stage.step("Two processes change the same memory at the same time")
    with stage.connect() as client:
        client.write(_COUNTER, "0", expected_version=0)
        rivals = [stage.actor("count", _COUNTER, str(_ADDITIONS)) for _ in range(2)]
        conflicts = 0
        for rival in rivals:
            did = rival.result()
            conflicts += did["conflicts"]
            stage.tell(
                rival.pid,
                f"added 1 {did['added']} times; was told {did['conflicts']} times that "
                "the other one had written first (EVERSION), and tried again",
            )
        total, version = int(client.read(_COUNTER)), client.stat(_COUNTER).version
        stage.verify(
            (total, version) == (2 * _ADDITIONS, 2 * _ADDITIONS + 1),
            f"the counter is at {total}, after {version} versions: no update was lost",
        )
        try:
            client.write(_COUNTER, "0", expected_version=1)
            refusal = None
        except MemError as error:
            refusal = error
        stage.verify(
            refusal is not None and refusal.errno is Errno.EVERSION,
            f"a write that expects an old version is refused: {refusal}",
        )


def _cut_off(stage: Stage) -> Digests:
    """Kill the daemon while a process writes; returns what that process was promised."""
    stage.step("The daemon is killed while a process writes")
    writer = stage.actor("stream", _THOUGHTS)
    acknowledged, is_killed = 0, False
    for said in writer.lines():
        if "error" in said:
            acknowledged = said["acknowledged"]
            stage.tell(
                writer.pid,
                f"was told of {acknowledged} durable writes, then {said['error']}",
            )
        elif said["acknowledged"] >= _ENOUGH_THOUGHTS and not is_killed:
            is_killed = True
            stage.kill_daemon()
            stage.tell(None, ("kill -9", "bold red"))
    stage.verify(acknowledged >= _ENOUGH_THOUGHTS, "the process noticed, and did not hang")
    return {
        f"{_THOUGHTS}/{number:06}": digest_of(f"thought number {number}".encode())
        for number in range(1, acknowledged + 1)
    }


def _return(
    stage: Stage, library: Digests, thoughts: Digests, before: tuple[list[str], str]
) -> None:
    stage.step("It starts again, and everything is there")
    pid, seconds = stage.start_daemon()
    stage.tell(pid, f"memosd --user answers after {seconds * 1000:.0f} ms")
    stage.verify(_digests(stage, LIBRARY) == library, f"all {len(library)} documents, bit for bit")
    _check_thoughts(stage, thoughts)
    best, large_digest = before
    reader = stage.actor("attach", _LARGE)
    seen = reader.result()
    stage.tell(
        reader.pid,
        f"mapped the large memory: {seen['first_ms']:.0f} ms from disk, every page verified, "
        f"then {seen['attach_ms']:.2f} ms",
    )
    stage.verify(seen["digest"] == large_digest, "every byte of it is as before")
    with stage.connect() as client:
        found = [client.search(query, k=1, mode=SearchMode.WORDS)[0].name for query in _QUERIES]
        stage.verify(found == best, "every search has the same best answer as before")
        counter = client.call(StatCube(name=_COUNTER))
        stage.verify(counter.version == 2 * _ADDITIONS + 1, "the counter has all its versions")
        broken = sum(len(reply.findings) for reply in client.fsck())
        stage.verify(broken == 0, "fsck finds nothing broken")


def _check_thoughts(stage: Stage, promised: Digests) -> None:
    found = _digests(stage, _THOUGHTS)
    stage.verify(
        promised.items() <= found.items(),
        f"all {len(promised)} writes it had acknowledged until the very end",
    )
    # One more may be there: written, but killed before its acknowledgement left.
    number = len(promised) + 1
    last = {f"{_THOUGHTS}/{number:06}": digest_of(f"thought number {number}".encode())}
    stage.verify(found.items() <= (promised | last).items(), "and nothing half-written beside them")


def _stop(stage: Stage) -> None:
    stage.step("It is asked to stop")
    stage.verify(stage.stop_daemon() == 0, "it ends by itself, with status 0")


if __name__ == "__main__":
    # So that a demo which is told to end takes its daemon and its directory along.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    sys.exit(main())
