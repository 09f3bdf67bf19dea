"""Writing conversations, documents and folders into a real daemon: once, again, changed, halted."""

import json
import os
from pathlib import Path

import pytest

import libmem
from libmem import ingest
from libmem.abi.errors import Errno, MemError
from libmem.abi.structs import Descriptive, Governance, Quota
from libmem.ingest import Format, Ingested, Turn
from tests.e2e.daemon import Daemon
from tests.e2e.memories import PARAGRAPH, only, place, snapshot, texts

# -- conversations ---------------------------------------------------------------------------------

TURNS = [
    Turn("Where do lapwings nest?", "ann", 5, tags=("birds",), attributes={"lang": "en"}),
    Turn("On open ground.", "bob", 6),
    Turn("Thanks!", "ann", 7),
    Turn("Thanks!", "ann", 8),
]


def test_each_turn_is_a_cube_with_its_place(client: libmem.Client) -> None:
    done = ingest.conversation(client, "/t/chats", TURNS, session="monday")
    assert done == Ingested(written=4, bytes=sum(len(turn.text) for turn in TURNS))
    stat = client.stat("/t/chats/monday/000000")
    assert stat.descriptive == Descriptive(
        semantic_type="episode", producer="ann", event_time_ns=5, tags=("birds",),
        session="chats/monday", position=0,
    )  # fmt: skip
    assert stat.attributes == {"lang": "en"}
    assert texts(client, "/t/chats") == [turn.text for turn in TURNS], "said twice is kept twice"


def test_a_conversation_that_went_on_is_completed(client: libmem.Client) -> None:
    ingest.conversation(client, "/t", TURNS[:2], session="s")
    before = snapshot(client)
    again = ingest.conversation(client, "/t", TURNS[:2], session="s")
    assert (again, snapshot(client)) == (Ingested(unchanged=2), before)
    done = ingest.conversation(client, "/t", TURNS, session="s")
    assert (done.written, done.unchanged) == (2, 2)
    late = ingest.conversation(client, "/t", [Turn("Bye.", "bob", 9, position=4)], session="s")
    assert late.written == 1
    assert texts(client, "/t/s")[-1] == "Bye."


def test_what_a_turn_says_otherwise_now_is_a_version(client: libmem.Client) -> None:
    ingest.conversation(client, "/t", TURNS, session="s")
    changed = [TURNS[0]._replace(text="Where do they nest?"), TURNS[1]._replace(producer="eve")]
    done = ingest.conversation(client, "/t", [*changed, *TURNS[2:]], session="s")
    assert (done.written, done.unchanged) == (2, 2)
    assert client.read("/t/s/000000@v1") == b"Where do lapwings nest?"
    assert client.stat("/t/s/000001").descriptive.producer == "eve"


def test_what_was_superseded_stays_so(client: libmem.Client) -> None:
    ingest.conversation(client, "/t", TURNS, session="s")
    client.write("/t/fact", "They nest in meadows.", supersedes=("/t/s/000001",))
    assert ingest.conversation(client, "/t", TURNS, session="s") == Ingested(unchanged=4)
    assert client.stat("/t/s/000001").descriptive.superseded_by == client.stat("/t/fact").id.hex()


def test_a_long_conversation_with_a_long_turn(client: libmem.Client) -> None:
    turns = [Turn(f"turn {number}", "ann") for number in range(700)]
    turns[3] = Turn("words " * 300_000, "bob")
    assert ingest.conversation(client, "/t", turns, session="s").written == 700
    assert client.stat("/t/s/000003").size_bytes > 1_000_000
    assert ingest.conversation(client, "/t", turns, session="s") == Ingested(unchanged=700)


def test_sessions_have_their_own_places(client: libmem.Client) -> None:
    turns = [Turn("a", session="1"), Turn("b", session="2"), Turn("c", session="1"), Turn(" ")]
    done = ingest.conversation(client, "/t", turns, session="x")
    assert (done.written, done.skipped) == (3, 1)
    assert texts(client, "/t/1") == ["a", "c"]
    twice = [Turn("a", position=3), Turn("b", position=3)]
    with pytest.raises(MemError) as caught:
        ingest.conversation(client, "/t", twice, session="x")
    assert caught.value.errno is Errno.EINVAL
    with pytest.raises(MemError, match="session"):
        ingest.conversation(client, "/t", [Turn("a")])


# -- documents -------------------------------------------------------------------------------------

GUIDE = f"""# Birds

{PARAGRAPH}

## Waders

Snipe hide in wet meadows and are seen when they fly up, in zigzags.

## Gulls

Herring gulls drop mussels from a height until they break.
"""


def test_a_document_is_found_by_its_headings(client: libmem.Client, tmp_path: Path) -> None:
    path = tmp_path / "guide.md"
    path.write_text(GUIDE, encoding="utf-8")
    done = ingest.document(client, "/t/docs", path)
    assert done.written == 3
    stats = sorted(client.list("/t/docs/guide.md"), key=place)
    assert [stat.descriptive.title for stat in stats] == [
        "Birds",
        "Birds > Waders",
        "Birds > Gulls",
    ]
    assert [place(stat) for stat in stats] == [("docs/guide.md", at) for at in range(3)]
    about = stats[0].descriptive
    assert (about.origin, about.event_time_ns) == (str(path), path.stat().st_mtime_ns)
    assert client.search("waders snipe", under="/t")[0].name == stats[1].name


def test_a_touched_document_is_the_same(client: libmem.Client, tmp_path: Path) -> None:
    path = tmp_path / "guide.md"
    path.write_text(GUIDE, encoding="utf-8")
    ingest.document(client, "/t", path)
    before = snapshot(client)
    os.utime(path, ns=(1, 1))
    assert ingest.document(client, "/t", path) == Ingested(unchanged=3)
    assert snapshot(client) == before


def test_of_a_changed_document_the_rest_stays(client: libmem.Client) -> None:
    ingest.document(client, "/t", GUIDE, name="guide.md")
    before = {stat.descriptive.title: stat for stat in client.list("/t/guide.md")}
    changed = GUIDE.replace("Snipe hide in", "Redshanks stand on posts in").replace(
        "# Birds\n", "# Birds\n\nAn introduction that was not there before.\n"
    )
    done = ingest.document(client, "/t", changed, name="guide.md")
    assert (done.written, done.unchanged, done.removed) == (2, 1, 2)
    after = {stat.descriptive.title: stat for stat in client.list("/t/guide.md")}
    assert after["Birds > Gulls"] == before["Birds > Gulls"]
    assert [text[:9] for text in texts(client, "/t/guide.md")] == [
        "An introd", "Redshanks", "Herring g",
    ]  # fmt: skip


def test_where_pieces_move_only_their_headers_change(client: libmem.Client) -> None:
    parts = ["# One\n\nalpha", "# Two\n\nbeta", "# Three\n\ngamma"]
    ingest.document(client, "/t", "\n\n".join(parts), name="d.md")
    done = ingest.document(client, "/t", "\n\n".join(reversed(parts)), name="d.md")
    assert (done.written, done.bytes, done.unchanged, done.removed) == (2, 0, 1, 0)
    assert texts(client, "/t/d.md") == ["gamma", "beta", "alpha"]


def test_an_emptied_document_is_gone(client: libmem.Client) -> None:
    ingest.document(client, "/t", GUIDE, name="guide.md")
    assert ingest.document(client, "/t", "", name="guide.md").removed == 3
    assert snapshot(client) == {}


def test_records_are_a_memory_each(client: libmem.Client) -> None:
    lines = '{"bird": "knot", "seen": 3}\n\n{"bird": "ruff", "seen": 0}\n"a note"\n'
    assert ingest.document(client, "/t", lines, name="seen.jsonl").written == 3
    assert texts(client, "/t")[0] == '{"bird":"knot","seen":3}'
    assert client.search("ruff", under="/t")[0].snippet


def test_a_text_needs_a_name(client: libmem.Client) -> None:
    with pytest.raises(MemError, match="name"):
        ingest.document(client, "/t", "text")
    with pytest.raises(MemError, match="conversation"):
        ingest.document(client, "/t", "[]", name="m.json", format=Format.MESSAGES)


def test_the_rules_of_new_cubes_and_their_tags(client: libmem.Client) -> None:
    rules = Governance(mode=0o640)
    ingest.document(client, "/t", "text", name="d", governance=rules, tags=("a",))
    (stat,) = client.list("/t", is_recursive=True)
    assert (stat.governance.mode, stat.descriptive.tags) == (0o640, ("a",))


# -- folders ---------------------------------------------------------------------------------------


def test_a_folder_is_read_in_order_and_what_is_no_text_passed_over(
    client: libmem.Client, tmp_path: Path
) -> None:
    (tmp_path / "b").mkdir()
    (tmp_path / "b" / "deep.txt").write_text("Deep down.", encoding="utf-8")
    (tmp_path / "a.md").write_text(GUIDE, encoding="utf-8")
    (tmp_path / "latin.txt").write_bytes("Küstenvögel, größere".encode("latin-1"))
    (tmp_path / "picture.png").write_bytes(b"\x89PNG\r\n\x1a\n\0\0")
    (tmp_path / "broken.json").write_text("{", encoding="utf-8")
    (tmp_path / ".hidden").write_text("secret", encoding="utf-8")
    (tmp_path / "b" / "loop").symlink_to(tmp_path)
    (tmp_path / "b" / "self").symlink_to("self")
    os.mkfifo(tmp_path / "pipe")
    os.utime(tmp_path / "latin.txt", (99_999_999_999, 99_999_999_999))
    messages = [{"role": "user", "content": "Hello there"}, {"role": "assistant", "content": "Hi"}]
    (tmp_path / "chat.json").write_text(json.dumps(messages), encoding="utf-8")
    seen: list[str] = []
    done = ingest.folder(
        client, "/t/all", tmp_path, progress=lambda path, _outcome: seen.append(path.name)
    )
    assert seen == ["a.md", "deep.txt", "broken.json", "chat.json", "latin.txt", "picture.png"]
    assert (done.written, done.skipped) == (7, 6)
    assert texts(client, "/t/all/latin.txt") == ["Küstenvögel, größere"]
    assert texts(client, "/t/all/chat.json") == ["Hello there", "Hi"]
    again = ingest.folder(client, "/t/all", tmp_path)
    assert (again.unchanged, again.written) == (7, 0)


def test_a_folder_needs_a_namespace_that_is_there(client: libmem.Client, tmp_path: Path) -> None:
    (tmp_path / "a").write_text("a", encoding="utf-8")
    for under, errno in (("/missing/x", Errno.ENOENT), ("/", Errno.EINVAL)):
        with pytest.raises(MemError) as caught:
            ingest.folder(client, under, tmp_path)
        assert caught.value.errno is errno
    with pytest.raises(MemError) as caught:
        ingest.folder(client, "/t", tmp_path / "missing")
    assert caught.value.errno is Errno.ENOENT


# -- what goes wrong -------------------------------------------------------------------------------


@pytest.mark.parametrize("nth", [1, 3, 5])
def test_what_a_killed_daemon_acknowledged_stays_and_the_rest_follows(
    idle: Daemon, tmp_path: Path, nth: int
) -> None:
    for number in range(20):
        body = "\n\n".join(f"# Part {part}\n\nwords {number} {part}" for part in range(5))
        (tmp_path / f"{number:02}.md").write_text(body, encoding="utf-8")
    idle.start()
    with idle.connect() as client:
        client.make_namespace("/t")
    idle.stop()
    idle.start(f"ledger.settle.before=exit@{nth}")
    with idle.connect(timeout_s=2.0) as client, pytest.raises(MemError):
        ingest.folder(client, "/t", tmp_path)
    idle.wait_for_end()
    idle.start()
    with idle.connect() as client:
        there = snapshot(client)
        done = ingest.folder(client, "/t", tmp_path)
        assert (done.written, done.unchanged) == (100 - len(there), len(there))
        assert len(snapshot(client)) == 100


def test_without_room_what_was_written_stays(client: libmem.Client) -> None:
    client.set_quota("/t", Quota(cubes=3))
    with pytest.raises(MemError) as caught:
        ingest.conversation(client, "/t", TURNS, session="s")
    assert caught.value.errno is Errno.EDQUOT
    assert texts(client, "/t/s") == [turn.text for turn in TURNS[:3]]
    client.set_quota("/t", Quota())
    done = ingest.conversation(client, "/t", TURNS, session="s")
    assert (done.written, done.unchanged) == (1, 3)


def test_what_another_wrote_under_a_pieces_name_becomes_a_version(client: libmem.Client) -> None:
    ingest.document(client, "/t", "text", name="d")
    name = only(client).name
    client.write(name, "other")
    assert ingest.document(client, "/t", "text", name="d").written == 1
    assert client.read(name) == b"text"
