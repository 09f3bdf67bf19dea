"""`memctl help` shows the syscall table without a daemon; completion suggests, or is silent."""

from importlib.metadata import version

import pytest
import typer

from libmem.abi.calls import Readdir, ReaddirReply
from libmem.abi.errors import Errno, MemError
from libmem.abi.syscalls import COMMON_ERRORS, SYSCALLS, Syscall
from memosd.tools.memctl.__main__ import app
from memosd.tools.memctl.completion import complete_cube, complete_namespace
from memosd.tools.memctl.failure import USAGE_STATUS
from tests.tools.memctl.fake import Memctl, make_stat


def test_the_list_has_every_syscall(memctl: Memctl) -> None:
    lines = memctl("help").out.splitlines()
    assert [line.split()[:2] for line in lines[1:]] == [
        [str(row.number), row.name] for row in SYSCALLS
    ]
    assert memctl.connections == []


@pytest.mark.parametrize("row", SYSCALLS, ids=lambda row: row.name)
def test_a_page_tells_all_that_the_row_does(memctl: Memctl, row: Syscall) -> None:
    out = memctl("help", row.name).out
    assert row.doc in out
    assert row.access.value in out
    for error in (*row.errors, *COMMON_ERRORS):
        assert error.name in out
    for field in (*row.request.__struct_fields__, *row.result.__struct_fields__):
        assert f"  {field}: " in out


def test_a_page_explains_the_structs_inside(memctl: Memctl) -> None:
    out = memctl("help", "write_cube").out
    assert "type: plaintext|blob|activation|parametric = plaintext" in out
    assert "governance: Governance | None = None" in out
    assert "mode: int = 0o600" in out
    assert "media_type: str = ''" in out


def test_a_page_has_the_prose_of_its_fields(memctl: Memctl) -> None:
    assert "None: whatever is there. 0: nothing may be there." in memctl("help", "create_cube").out
    (row,) = memctl("help", "unlink_cube", "--json").lines
    assert "that old version only" in row["arguments"][0]["doc"]


def test_help_for_programs(memctl: Memctl) -> None:
    (row,) = memctl("help", "evict", "--json").lines
    assert row["name"] == "evict"
    assert row["access"] == "WRITE"
    assert row["arguments"] == [{"name": "name", "type": "str", "default": "", "doc": ""}]
    assert {"name": "EBUSY", "errno": 16, "meaning": Errno.EBUSY.meaning} in row["errors"]
    assert len(memctl("help", "--json").lines) == len(SYSCALLS)


def test_an_unknown_syscall_names_the_nearest(memctl: Memctl) -> None:
    outcome = memctl("help", "stat")
    assert outcome.status == Errno.ENOSYS
    assert "stat_cube or stat_namespace" in outcome.err
    assert "is it evict?" in memctl("help", "evit").err
    assert "is it" not in memctl("help", "zzzzzz").err


def context_of(memctl: Memctl) -> typer.Context:
    """The context that a completion callback is given."""
    command = typer.main.get_command(app)
    return typer.Context(command, obj=memctl.settings)


def test_names_are_completed_a_folder_at_a_time(memctl: Memctl) -> None:
    reply = ReaddirReply(entries=(make_stat("/notes/today"),), folders=("/notes/2026/",))
    memctl.client.answers = {Readdir: reply}
    assert complete_cube(context_of(memctl), "/notes/to") == ["/notes/2026/", "/notes/today"]
    assert memctl.client.requests[0].path == "/notes/"  # type: ignore[attr-defined]
    assert memctl.client.is_closed
    assert complete_namespace(context_of(memctl), "/notes/to") == []


def test_without_a_daemon_nothing_is_completed(memctl: Memctl) -> None:
    memctl.refusal = MemError(Errno.ECONNREFUSED, "nobody answers")
    assert complete_cube(context_of(memctl), "/no") == []


def test_the_version_needs_no_daemon(memctl: Memctl) -> None:
    outcome = memctl("--version")
    assert (outcome.status, outcome.out) == (0, f"memctl {version('memosd')}\n")
    assert memctl.connections == []


@pytest.mark.parametrize(
    "argv",
    [
        ["log", "-n", "1001"],
        ["history", "/a/b", "-n", "1001"],
        ["search", "word", "-k", "1001"],
        ["--timeout", "inf", "status"],
        ["put", "-", "/a/b", "--priority", "101"],
    ],
)
def test_a_number_beyond_its_bound_is_a_wrong_command_line(memctl: Memctl, argv: list[str]) -> None:
    assert memctl(*argv).status == USAGE_STATUS
    assert memctl.connections == []
