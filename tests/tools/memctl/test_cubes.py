"""ls, stat, history, mv, rm: what they ask of the daemon and what they print."""

import msgspec
import pytest

from libmem.abi.calls import (
    HistoryCube,
    HistoryReply,
    Readdir,
    ReaddirReply,
    RenameCube,
    RenameReply,
    StatCube,
    UnlinkCube,
    UnlinkReply,
)
from libmem.abi.errors import Errno, MemError
from libmem.abi.structs import CubeType, Governance, NamespaceStat, Quota, StoredForm, Usage
from memosd.tools.memctl.cubes import owner
from tests.tools.memctl.fake import Memctl, make_stat

SPACE = NamespaceStat(
    name="/notes",
    owner_uid=0,
    owner_gid=0,
    mode=0o750,
    created_ns=1_700_000_000_000_000_000,
    quota=Quota(),
    usage=Usage(disk_bytes=3 << 20, cubes=2),
)


def listing(**fields: object) -> ReaddirReply:
    """A reply with nothing in it but `fields`."""
    return ReaddirReply(**{"entries": (), "folders": (), **fields})  # type: ignore[arg-type]


def test_ls_names_folders_with_a_slash(memctl: Memctl) -> None:
    reply = listing(entries=(make_stat("/notes/today"),), folders=("/notes/2026/",))
    outcome = memctl("ls", "/notes", answers={Readdir: reply})
    assert outcome.out == "/notes/2026/\n/notes/today\n"
    assert isinstance(outcome.client.requests[0], Readdir)
    assert outcome.client.requests[0].path == "/notes"


def test_ls_begins_at_the_namespaces(memctl: Memctl) -> None:
    outcome = memctl("ls", answers={Readdir: listing(namespaces=(SPACE,))})
    assert outcome.out == "/notes/\n"
    long = memctl("ls", "-l").out.splitlines()[1].split()
    assert long[0] == "nrwxr-x---"
    assert long[1] == owner(0)
    assert long[2:4] == ["2", "cubes"]
    assert long[5:7] == ["3.0", "MiB"]


def test_ls_follows_the_pages(memctl: Memctl) -> None:
    pages = {
        "": listing(entries=(make_stat("/notes/a"),), next_cursor="after a"),
        "after a": listing(entries=(make_stat("/notes/b"),)),
    }
    outcome = memctl("ls", "-R", "/notes", answers={Readdir: lambda request: pages[request.cursor]})
    assert outcome.out == "/notes/a\n/notes/b\n"
    assert [request.is_recursive for request in outcome.client.requests] == [True, True]  # type: ignore[attr-defined]


def test_ls_recursive_goes_into_every_namespace_it_may_list(memctl: Memctl) -> None:
    closed = msgspec.structs.replace(SPACE, name="/closed")
    pages = {
        "/": listing(namespaces=(closed, SPACE)),
        "/closed": MemError(Errno.EACCES, "may not list the namespace"),
        "/notes": listing(entries=(make_stat("/notes/2026/a"),)),
    }
    outcome = memctl("ls", "-R", answers={Readdir: lambda request: pages[request.path]})
    assert outcome.status == 0
    assert outcome.out == "/closed/\n/notes/\n/notes/2026/a\n"
    assert "/closed: may not list" in outcome.err


def test_ls_long_shows_version_size_and_tiers(memctl: Memctl) -> None:
    cubes = (
        make_stat("/notes/today"),
        make_stat("/notes/bad", is_quarantined=True, tiers=(), size_bytes=94 << 20),
    )
    lines = memctl("ls", "-l", "/notes", answers={Readdir: listing(entries=cubes)}).out.splitlines()
    assert lines[0].split()[:5] == ["MODE", "OWNER", "TYPE", "VERSION", "SIZE"]
    assert lines[1].startswith("-rw-r-----")
    assert "v3" in lines[1]
    assert "1.5 KiB" in lines[1]
    assert "ram,disk" in lines[1]
    assert lines[1].endswith("  /notes/today")
    assert lines[2].startswith("!rw-r-----")
    assert lines[1].index("/notes/today") == lines[2].index("/notes/bad")


def test_ls_for_programs_tells_the_kinds_apart(memctl: Memctl) -> None:
    reply = listing(entries=(make_stat(),), folders=("/notes/2026/",))
    folder, cube = memctl("ls", "/notes", "--json", answers={Readdir: reply}).lines
    assert folder == {"name": "/notes/2026", "kind": "folder"}
    assert cube["digest"] == "ab" * 16


@pytest.mark.parametrize("reply", [listing(), MemError(Errno.ENOENT, "no such folder")])
def test_ls_of_a_cube_is_that_cube(memctl: Memctl, reply: object) -> None:
    answers = {Readdir: reply, StatCube: make_stat("/notes/today")}
    assert memctl("ls", "/notes/today", answers=answers).out == "/notes/today\n"


def test_ls_of_nothing_fails(memctl: Memctl) -> None:
    answers = {Readdir: listing(), StatCube: MemError(Errno.ENOENT, "no such cube")}
    assert memctl("ls", "/notes/nothing", answers=answers).status == Errno.ENOENT


def test_ls_of_an_empty_namespace_is_empty(memctl: Memctl) -> None:
    outcome = memctl("ls", "/notes", answers={Readdir: listing()})
    assert (outcome.status, outcome.out) == (0, "")


def test_ls_of_a_missing_namespace_fails(memctl: Memctl) -> None:
    missing = MemError(Errno.ENOENT, "no such namespace")
    assert memctl("ls", "/notes", answers={Readdir: missing}).status == Errno.ENOENT


def test_stat_shows_the_header(memctl: Memctl) -> None:
    out = memctl("stat", "/notes/today@v3", answers={StatCube: make_stat()}).out
    facts = dict(line.split("  ", 1) for line in out.splitlines())
    facts = {title.strip(): value.strip() for title, value in facts.items()}
    assert facts["version"] == "3 of 3"
    assert facts["size"] == "1.5 KiB (1536 bytes)"
    assert facts["mode"] == "0640 rw-r-----"
    assert facts["title"] == "A title"
    assert not {"tags", "half-life"} & set(facts), "nothing to say"
    assert memctl.client.requests == [StatCube(name="/notes/today@v3")]


def test_stat_shows_a_half_life(memctl: Memctl) -> None:
    rules = Governance(half_life_s=5400.0)
    out = memctl("stat", "/notes/today", answers={StatCube: make_stat(governance=rules)}).out
    (line,) = [line for line in out.splitlines() if line.startswith("half-life")]
    assert line.split("  ")[-1] == "1 h 30 min"


def test_stat_shows_a_form_that_loses_something(memctl: Memctl) -> None:
    form = StoredForm("int8", 512, b"\xcd" * 16, 0.0031, b"\xef" * 16)
    out = memctl("stat", "/notes/today", answers={StatCube: make_stat(stored=form)}).out
    (line,) = [line for line in out.splitlines() if line.startswith("on disk")]
    assert line.split("  ")[-1] == f"int8, 512 B, error 0.0031, read back as xxh3-128 {'ef' * 16}"


def test_history(memctl: Memctl) -> None:
    versions = tuple(make_stat(version=version) for version in (3, 2))
    outcome = memctl(
        "history", "/notes/today", "-n", "2", answers={HistoryCube: HistoryReply(versions=versions)}
    )
    assert [line.split()[0] for line in outcome.out.splitlines()] == ["VERSION", "v3", "v2"]
    assert outcome.client.requests == [HistoryCube(name="/notes/today", limit=2)]


def test_mv(memctl: Memctl) -> None:
    outcome = memctl(
        "mv", "/a/b", "/a/c", "--expect-version", "3", answers={RenameCube: RenameReply(version=4)}
    )
    assert outcome.out == "/a/b -> /a/c\n"
    assert outcome.client.requests == [RenameCube(name="/a/b", new_name="/a/c", expected_version=3)]
    assert memctl("mv", "/a/b", "/a/c", "--json").lines == [
        {"name": "/a/b", "new_name": "/a/c", "version": 4}
    ]


def test_rm(memctl: Memctl) -> None:
    answers = {UnlinkCube: UnlinkReply(freed_bytes=10, versions=1)}
    outcome = memctl("rm", "/a/b", "/a/c", "--json", answers=answers)
    assert outcome.lines == [
        {"name": "/a/b", "freed_bytes": 10, "versions": 1, "dependents": 0, "receipt": None},
        {"name": "/a/c", "freed_bytes": 10, "versions": 1, "dependents": 0, "receipt": None},
    ]


KV = {
    "model": "ab" * 32,
    "dtype": "float32",
    "layers": [{"count": 30, "heads": 3, "key_dim": 64, "value_dim": 64}],
    "tokens": 2048,
}


def test_stat_says_what_a_kv_cache_is(memctl: Memctl) -> None:
    cache = make_stat("/kv/a", type=CubeType.ACTIVATION, attributes={"kv": KV, "note": 1})
    lines = memctl("stat", "/kv/a", answers={StatCube: cache}).out.splitlines()
    shown = {line.split()[0]: " ".join(line.split()[1:]) for line in lines}
    assert shown["tokens"] == "2,048"
    assert shown["layers"] == "30 of 3 KV heads x 64; float32"
    assert shown["model"] == "abababababab..."
    assert shown["attributes"] == "note=1"


def test_stat_says_what_a_part_stands_on(memctl: Memctl) -> None:
    layers = [
        {"count": 1, "heads": 1, "key_dim": 192, "value_dim": 128, "window": 4096},
        {"count": 2, "heads": 8, "key_dim": 64, "value_dim": 64},
    ]
    header = {**KV, "layers": layers, "start": 1024, "before": "0" * 64}
    cache = make_stat("/kv/a", type=CubeType.ACTIVATION, attributes={"kv": header})
    out = memctl("stat", "/kv/a", answers={StatCube: cache}).out
    assert "2,048, the first 1,024 of them in its first parent" in out
    assert "1 of 1 KV head x 192+128, window 4,096; 2 of 8 KV heads x 64; float32" in out


def test_stat_shows_a_header_that_it_does_not_know_as_it_is(memctl: Memctl) -> None:
    cache = make_stat("/kv/a", type=CubeType.ACTIVATION, attributes={"kv": {"new": 1}})
    assert "kv={'new': 1}" in memctl("stat", "/kv/a", answers={StatCube: cache}).out


@pytest.mark.parametrize(
    ("dependents", "said"),
    [(0, ""), (1, "; 1 cube that stood"), (3, "; 3 cubes that stood on it went with it")],
)
def test_rm_says_what_went_with_it(memctl: Memctl, dependents: int, said: str) -> None:
    reply = UnlinkReply(freed_bytes=2048, versions=1, dependents=dependents)
    out = memctl("rm", "/kv/a", answers={UnlinkCube: reply}).out
    assert out.startswith(f"removed /kv/a: 1 version, 2.0 KiB{said}")
