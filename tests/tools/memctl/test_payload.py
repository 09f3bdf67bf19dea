"""put and cat: by value or through shared memory, text told from bytes, rules kept or changed."""

import io
import json
import os
import sys
from pathlib import Path

import pytest

from libmem.abi.calls import StatCube, WriteCube, WriteReply
from libmem.abi.errors import Errno, MemError
from libmem.abi.structs import CubeType, Governance
from tests.tools.memctl.fake import Answers, Memctl, make_stat

WRITTEN: Answers = {WriteCube: WriteReply(id=b"\x01" * 16, version=4, digest=b"\x02" * 16)}


def written(memctl: Memctl) -> WriteCube:
    """The one WriteCube that was sent."""
    (request,) = [item for item in memctl.client.requests if isinstance(item, WriteCube)]
    return request


def test_put_sends_a_small_text_by_value(memctl: Memctl, tmp_path: Path) -> None:
    path = tmp_path / "note.txt"
    path.write_text("Grüße", encoding="utf-8")
    options = ["--title", "Greeting", "--tag", "a", "--tag", "b", "--expect-version", "3"]
    outcome = memctl("put", str(path), "/notes/today", *options, answers=WRITTEN)
    assert outcome.out == "/notes/today@v4  7 B\n"
    request = written(memctl)
    assert request.payload == "Grüße".encode()
    assert request.type is CubeType.PLAINTEXT
    assert request.descriptive.title == "Greeting"
    assert request.descriptive.tags == ("a", "b")
    assert request.descriptive.origin == str(path)
    assert request.descriptive.media_type == ""
    assert request.expected_version == 3
    assert request.governance is None  # the rules stay as they are


def test_put_knows_json_by_its_suffix(memctl: Memctl, tmp_path: Path) -> None:
    path = tmp_path / "fact.json"
    path.write_text("{}", encoding="utf-8")
    memctl("put", str(path), "/notes/fact", answers=WRITTEN)
    assert written(memctl).descriptive.media_type == "application/json"


def test_a_media_type_given_wins(memctl: Memctl, tmp_path: Path) -> None:
    path = tmp_path / "fact.json"
    path.write_text("{}", encoding="utf-8")
    memctl("put", str(path), "/notes/fact", "--media-type", "text/plain", answers=WRITTEN)
    assert written(memctl).descriptive.media_type == "text/plain"


def test_put_fills_a_large_payload_in_place(memctl: Memctl, tmp_path: Path) -> None:
    payload = os.urandom(10 << 20)
    path = tmp_path / "large"
    path.write_bytes(payload)
    outcome = memctl("put", str(path), "/notes/large", "--type", "blob", "--json")
    assert outcome.client.fills[0].sealed == payload
    name, size_bytes, options = outcome.client.created[0]
    assert (name, size_bytes, options["type"]) == ("/notes/large", len(payload), CubeType.BLOB)
    assert outcome.lines[0]["version"] == 7
    assert outcome.lines[0]["id"] == "01" * 16


def test_put_refuses_bytes_that_are_not_called_a_blob(memctl: Memctl, tmp_path: Path) -> None:
    path = tmp_path / "picture"
    path.write_bytes(b"\x89PNG")
    outcome = memctl("put", str(path), "/notes/picture", answers=WRITTEN)
    assert outcome.status == Errno.EILSEQ
    assert "hint: for bytes that are not UTF-8 text or JSON give --type blob" in outcome.err
    assert outcome.client.requests == []
    assert memctl("put", str(path), "/notes/picture", "--type", "blob").status == 0


def test_a_character_across_the_border_of_what_is_looked_at_is_text(
    memctl: Memctl, tmp_path: Path
) -> None:
    path = tmp_path / "long.txt"
    path.write_text("x" * (64 * 1024 - 1) + "é" * 10, encoding="utf-8")
    assert memctl("put", str(path), "/notes/long").status == 0
    assert memctl.client.fills[0].sealed == path.read_bytes()


def test_a_text_that_ends_within_a_character_is_none(memctl: Memctl, tmp_path: Path) -> None:
    path = tmp_path / "torn.txt"
    path.write_bytes("é".encode()[:1])
    assert memctl("put", str(path), "/notes/torn", answers=WRITTEN).status == Errno.EILSEQ


@pytest.mark.parametrize(
    ("option", "value", "changed"),
    [
        ("--priority", "90", Governance(mode=0o640, priority=90, owner_uid=5)),
        ("--half-life", "90", Governance(0o640, priority=60, owner_uid=5, half_life_s=90.0)),
    ],
)
def test_put_changes_only_the_rules_that_were_named(
    memctl: Memctl, tmp_path: Path, option: str, value: str, changed: Governance
) -> None:
    path = tmp_path / "note"
    path.write_text("x", encoding="utf-8")
    rules = Governance(mode=0o640, priority=60, owner_uid=5)
    answers = {**WRITTEN, StatCube: make_stat(governance=rules)}
    memctl("put", str(path), "/notes/today", option, value, answers=answers)
    assert written(memctl).governance == changed


def test_put_of_a_new_cube_with_a_mode(memctl: Memctl, tmp_path: Path) -> None:
    path = tmp_path / "note"
    path.write_text("x", encoding="utf-8")
    answers = {**WRITTEN, StatCube: MemError(Errno.ENOENT, "no such cube")}
    memctl("put", str(path), "/notes/new", "--mode", "0644", answers=answers)
    assert written(memctl).governance == Governance(mode=0o644)
    assert memctl("put", str(path), "/notes/new", "--mode", "rw").status == Errno.EINVAL


@pytest.mark.parametrize("size_bytes", [0, 3, 5000])
def test_put_reads_a_pipe(memctl: Memctl, monkeypatch: pytest.MonkeyPatch, size_bytes: int) -> None:
    reading, writing = os.pipe()
    os.write(writing, b"x" * size_bytes)
    os.close(writing)
    with io.TextIOWrapper(os.fdopen(reading, "rb")) as stdin:
        monkeypatch.setattr(sys, "stdin", stdin)
        assert memctl("put", "-", "/notes/piped", answers=WRITTEN).status == 0
    if size_bytes > memctl.client.session.call_by_value_bytes:
        assert memctl.client.fills[0].sealed == b"x" * size_bytes
    else:
        assert written(memctl).payload == b"x" * size_bytes
        assert written(memctl).descriptive.origin == ""


def test_put_reads_a_redirected_file(
    memctl: Memctl, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    path = tmp_path / "note"
    path.write_text("redirected", encoding="utf-8")
    with path.open(encoding="utf-8") as stdin:
        monkeypatch.setattr(sys, "stdin", stdin)
        memctl("put", "-", "/notes/redirected", answers=WRITTEN)
    assert written(memctl).payload == b"redirected"


def test_put_reads_a_file_that_does_not_tell_its_size(memctl: Memctl) -> None:
    path = Path("/proc/self/comm")
    memctl("put", str(path), "/notes/comm", answers=WRITTEN)
    assert written(memctl).payload == path.read_bytes() != b""


def test_put_of_a_file_that_is_not_there(memctl: Memctl, tmp_path: Path) -> None:
    outcome = memctl("put", str(tmp_path / "nothing"), "/notes/a")
    assert outcome.status == Errno.ENOENT
    assert "nothing: No such file or directory" in outcome.err
    assert memctl.connections == []


def test_put_of_a_folder(memctl: Memctl, tmp_path: Path) -> None:
    outcome = memctl("put", str(tmp_path), "/notes/a")
    assert outcome.status == Errno.EIO  # EISDIR is no errno of memosd's
    assert "Is a directory" in outcome.err


def test_put_notices_a_file_that_shrinks(memctl: Memctl, tmp_path: Path) -> None:
    path = tmp_path / "shrinking"
    path.write_bytes(b"x" * (1 << 20))

    def shrink(_request: object) -> object:
        os.truncate(path, 10)
        return make_stat()

    outcome = memctl("put", str(path), "/a/b", "--mode", "0600", answers={StatCube: shrink})
    assert outcome.status == Errno.EIO
    assert "shorter" in outcome.err
    assert not any(fill.sealed for fill in memctl.client.fills)


def test_cat_writes_the_payload_and_nothing_else(memctl: Memctl) -> None:
    memctl.client.payload = "Grüße\n".encode()
    outcome = memctl("cat", "/a/b", answers={StatCube: make_stat(size_bytes=8)})
    assert outcome.out == "Grüße\n"


def test_cat_writes_a_large_payload_from_its_mapping(memctl: Memctl) -> None:
    memctl.client.payload = b"0123456789" * (1 << 20)
    size_bytes = len(memctl.client.payload)
    outcome = memctl("cat", "/a/b", answers={StatCube: make_stat(size_bytes=size_bytes)})
    assert outcome.out.encode() == memctl.client.payload


@pytest.mark.parametrize(
    ("payload", "shown"), [(b"text", {"text": "text"}), (b"\xff", {"hex": "ff"})]
)
def test_cat_for_programs(memctl: Memctl, payload: bytes, shown: dict[str, str]) -> None:
    memctl.client.payload = payload
    out = memctl("cat", "/a/b", "--json", answers={StatCube: make_stat()}).out
    assert json.loads(out) == {"name": "/a/b", "size_bytes": len(payload), **shown}
