"""Duplicates in a real daemon: folded, kept or left out; provenance, and who inherits."""

from collections.abc import Callable
from typing import Any

import msgspec
import pytest

import libmem
from libmem import ingest
from libmem.abi.calls import RenameCube, SetHeader
from libmem.abi.errors import Errno, MemError
from libmem.abi.structs import Descriptive
from libmem.ingest import Duplicates, Ingested, Turn
from libmem.ingest.pieces import PROVENANCE, send
from tests.e2e.memories import PARAGRAPH, only, snapshot, texts

NEAR = PARAGRAPH.replace("notice them first", "notice them soon")


@pytest.mark.parametrize(
    "again", [PARAGRAPH, PARAGRAPH.upper(), NEAR], ids=["same", "case", "near"]
)
def test_what_is_there_already_learns_where_else_it_was_met(
    client: libmem.Client, again: str
) -> None:
    ingest.document(client, "/t", PARAGRAPH, name="a")
    done = ingest.document(client, "/t/more", again, name="b")
    assert done == Ingested(folded=1)
    stat = only(client)
    (entry,) = stat.attributes[PROVENANCE]
    assert (entry["session"], entry["position"]) == ("more/b", 0)
    assert entry["name"].startswith("/t/more/b/")
    assert ingest.document(client, "/t/more", again, name="b") == Ingested(unchanged=1)
    assert ingest.document(client, "/t", PARAGRAPH, name="a") == Ingested(unchanged=1)
    assert only(client).version == stat.version


@pytest.mark.parametrize(
    "other",
    [
        PARAGRAPH.replace("some weeks", "4 weeks"),
        PARAGRAPH.replace("both birds sit", "both birds do not sit"),
        "The lapwing builds its nest on open ground.",
    ],
    ids=["number", "not", "short"],
)
def test_what_says_something_else_is_kept(client: libmem.Client, other: str) -> None:
    ingest.document(client, "/t", PARAGRAPH, name="a")
    assert ingest.document(client, "/t", other, name="b").written == 1


def test_others_words_are_not_folded(client: libmem.Client) -> None:
    ingest.conversation(client, "/t", [Turn(PARAGRAPH, "ann")], session="s")
    assert ingest.document(client, "/t", PARAGRAPH, name="a").written == 1
    client.set_header(only(client, "/t/a").name, descriptive=Descriptive(semantic_type="x"))
    assert ingest.document(client, "/t", PARAGRAPH, name="b").written == 1


def test_what_ended_is_not_folded_into(client: libmem.Client) -> None:
    ingest.document(client, "/t", PARAGRAPH, name="a")
    client.write("/t/new", "news", supersedes=(only(client, "/t/a").name,))
    assert ingest.document(client, "/t", PARAGRAPH, name="b").written == 1


def test_duplicates_may_be_kept_or_left_out(client: libmem.Client) -> None:
    twice = f"{PARAGRAPH}\n\n" * 8  # more than one piece of the same text
    ingest.document(client, "/t", PARAGRAPH, name="a")
    skipped = ingest.document(client, "/t", PARAGRAPH, name="b", duplicates=Duplicates.SKIP)
    assert (skipped.skipped, skipped.written) == (1, 0)
    assert PROVENANCE not in only(client).attributes
    assert (
        ingest.document(client, "/t", PARAGRAPH, name="b", duplicates=Duplicates.KEEP).written == 1
    )
    kept = ingest.document(client, "/t", twice, name="c", duplicates=Duplicates.KEEP)
    assert kept.written == 2
    assert ingest.document(client, "/t", twice, name="c", duplicates=Duplicates.KEEP) == Ingested(
        unchanged=2
    )


def test_a_document_that_repeats_itself(client: libmem.Client) -> None:
    source = f"# One\n\n{PARAGRAPH}\n\n# Two\n\n{PARAGRAPH}\n"
    done = ingest.document(client, "/t", source, name="d.md")
    assert (done.written, done.folded) == (1, 1)
    (entry,) = only(client).attributes[PROVENANCE]
    assert (entry["session"], entry["position"]) == ("d.md", 1)
    before = snapshot(client)
    ingest.document(client, "/t", source, name="d.md")
    assert snapshot(client) == before
    ingest.document(client, "/t", f"# One\n\n{PARAGRAPH}\n", name="d.md")
    assert PROVENANCE not in only(client).attributes


def test_a_provenance_ends_where_a_header_is_full(client: libmem.Client) -> None:
    source = f"# One\n\n{PARAGRAPH}\n\n" * 3000
    done = ingest.document(client, "/t", source, name="d.md")
    assert (done.written, done.folded) == (1, 2999)
    before = snapshot(client)
    for name in ("d.md", "e.md"):
        ingest.document(client, "/t", source, name=name)
        assert snapshot(client) == before
    kept = only(client).attributes[PROVENANCE]
    assert [entry["position"] for entry in kept] == list(range(1, len(kept) + 1))


def test_what_another_document_still_says_is_handed_on(client: libmem.Client) -> None:
    for name in "abc":
        ingest.document(client, "/t", PARAGRAPH, name=name)
    before = only(client)
    assert len(before.attributes[PROVENANCE]) == 2
    assert ingest.document(client, "/t", "Other words.", name="a").removed == 1
    heir = only(client, "/t/b")
    assert (heir.id, heir.descriptive.session) == (before.id, "b")
    assert [entry["session"] for entry in heir.attributes[PROVENANCE]] == ["c"]
    assert ingest.document(client, "/t", PARAGRAPH, name="b") == Ingested(unchanged=1)
    ingest.document(client, "/t", "", name="b")
    ingest.document(client, "/t", "", name="c")
    assert texts(client, "/t") == ["Other words."]


@pytest.fixture
def meanwhile(client: libmem.Client, monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Has a change made right after every rename."""

    def install(change: Callable[[libmem.Client, str], object]) -> None:
        rename = libmem.Client.rename

        def renaming(self: libmem.Client, name: str, new_name: str, **options: Any) -> Any:
            reply = rename(self, name, new_name, **options)
            change(self, new_name)
            return reply

        monkeypatch.setattr(libmem.Client, "rename", renaming)

    return install


def test_what_is_said_of_a_cube_while_it_is_handed_on_stays(
    client: libmem.Client, meanwhile: Callable[..., None]
) -> None:
    for name in "abc":
        ingest.document(client, "/t", PARAGRAPH, name=name)

    def remark(client: libmem.Client, name: str) -> None:
        stat = client.stat(name)
        entry = {**stat.attributes[PROVENANCE][-1], "name": "/t/d/x", "session": "d"}
        provenance = [*stat.attributes[PROVENANCE], entry]
        client.set_header(name, attributes={PROVENANCE: provenance, "remark": "mine"})

    meanwhile(remark)
    assert ingest.document(client, "/t", "Other words.", name="a").removed == 1
    heir = only(client, "/t/b")
    assert (heir.descriptive.session, heir.attributes["remark"]) == ("b", "mine")
    assert [entry["session"] for entry in heir.attributes[PROVENANCE]] == ["c", "d"]


def test_a_cube_that_is_written_anew_while_it_is_handed_on_is_its_writers(
    client: libmem.Client, meanwhile: Callable[..., None]
) -> None:
    for name in "ab":
        ingest.document(client, "/t", PARAGRAPH, name=name)
    about = Descriptive(title="mine")
    meanwhile(lambda client, name: client.write(name, "News.", descriptive=about))
    assert ingest.document(client, "/t", "Other words.", name="a").removed == 1
    assert only(client, "/t/b").descriptive == about


def test_a_cube_that_changes_all_the_time_is_not_waited_for_for_ever(
    client: libmem.Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in "ab":
        ingest.document(client, "/t", PARAGRAPH, name=name)
    stat = libmem.Client.stat

    def outdated(self: libmem.Client, name: str) -> Any:
        return msgspec.structs.replace(found := stat(self, name), version=found.version + 1)

    def changing(self: libmem.Client, name: str, new_name: str, **options: Any) -> Any:
        self.call(RenameCube(name, new_name, **options))
        return self.set_header(new_name, attributes={"remark": 1})

    monkeypatch.setattr(libmem.Client, "rename", changing)
    monkeypatch.setattr(libmem.Client, "stat", outdated)
    with pytest.raises(MemError) as caught:
        ingest.document(client, "/t", "Other words.", name="a")
    assert caught.value.errno is Errno.EVERSION


def test_who_may_not_add_to_a_cube_writes_his_own(
    client: libmem.Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    ingest.document(client, "/t", PARAGRAPH, name="a")

    def refusing(client: libmem.Client, requests: list[Any], calls: int = 32) -> list[Any]:
        refusal = MemError(Errno.EPERM, "only the owner")
        headers = [isinstance(request, SetHeader) for request in requests]
        return [refusal] * len(headers) if any(headers) else send(client, requests, calls)

    monkeypatch.setattr("libmem.ingest.duplicates.send", refusing)
    assert ingest.document(client, "/t", PARAGRAPH, name="b").written == 1
    assert len(snapshot(client)) == 2


def test_an_attribute_of_that_name_is_left_alone(client: libmem.Client) -> None:
    for number, strange in enumerate(["mine", [1], [{"name": 7}]]):
        about = Descriptive(semantic_type="document")
        client.write(f"/t/{number}", PARAGRAPH, descriptive=about, attributes={PROVENANCE: strange})
    assert ingest.document(client, "/t", PARAGRAPH, name="a").written == 1
    assert client.stat("/t/0").attributes == {PROVENANCE: "mine"}


def test_a_cube_is_handed_to_nobody_outside_its_namespace(client: libmem.Client) -> None:
    ingest.document(client, "/t", PARAGRAPH, name="a")
    stat = only(client)
    entry = {"title": "", "origin": "", "session": "x", "position": 0, "event_time_ns": 0}
    client.make_namespace("/u")
    forged = [{**entry, "name": "/u/x"}, {**entry, "name": "no name"}, {**entry, "name": "/t/@v1"}]
    client.set_header(stat.name, attributes={PROVENANCE: forged})
    assert ingest.document(client, "/t", "", name="a").removed == 1
    assert snapshot(client) == {}
    client.remove_namespace("/u")
