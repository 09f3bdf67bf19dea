"""How memctl ends: errno as exit status, one line and a hint on standard error, quiet signals."""

import json
from pathlib import Path

import pytest

from libmem.abi.calls import Evict, EvictReply, StatCube, UnlinkCube, UnlinkReply
from libmem.abi.errors import Errno, MemError
from tests.tools.memctl.fake import Memctl, make_stat


@pytest.mark.parametrize("errno", list(Errno))
def test_the_exit_status_is_the_errno(memctl: Memctl, errno: Errno) -> None:
    outcome = memctl("stat", "/a/b", answers={StatCube: MemError(errno, "told so", cube="/a/b")})
    assert outcome.status == errno
    assert outcome.out == ""
    assert outcome.err.startswith(f"memctl: {errno.name}: told so (cube=/a/b)\n")
    assert outcome.client.is_closed


def test_a_missing_namespace_is_one_command_away(memctl: Memctl) -> None:
    missing = MemError(Errno.ENOENT, "no such namespace", namespace="/a")
    assert "`memctl mkns /a`" in memctl("stat", "/a/b", answers={StatCube: missing}).err
    gone = MemError(Errno.ENOENT, "no such cube", cube="/a/b")
    assert "hint" not in memctl("stat", "/a/b", answers={StatCube: gone}).err


def test_programs_get_the_error_as_json(memctl: Memctl) -> None:
    refusal = MemError(Errno.EDQUOT, "full", need_bytes=10, free_bytes=3)
    outcome = memctl("stat", "/a/b", "--json", answers={StatCube: refusal})
    assert outcome.status == Errno.EDQUOT
    error = json.loads(outcome.err)
    assert error["error"] == "EDQUOT"
    assert error["errno"] == 122
    assert error["detail"] == {"need_bytes": 10, "free_bytes": 3}
    assert "memctl quota" in error["hint"]


def test_an_error_message_cannot_steer_the_terminal(memctl: Memctl) -> None:
    outcome = memctl("stat", "/a/b", answers={StatCube: MemError(Errno.EIO, "\x1b[2J")})
    assert "\x1b" not in outcome.err


def test_without_a_daemon_it_says_how_to_start_one(memctl: Memctl) -> None:
    memctl.refusal = MemError(Errno.ECONNREFUSED, "nobody answers")
    outcome = memctl("--runtime-dir", "/no/such", "status")
    assert outcome.status == Errno.ECONNREFUSED
    assert "hint: tried /no/such;" in outcome.err
    assert "memosd --user" in outcome.err
    assert "systemctl start memosd" in outcome.err


def test_the_hint_names_the_directory_of_the_environment(
    memctl: Memctl, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MEMOSD_RUNTIME_DIR", "/from/the/environment")
    memctl.refusal = MemError(Errno.ECONNREFUSED, "nobody answers")
    assert "tried /from/the/environment;" in memctl("ls").err


@pytest.mark.parametrize(
    "argv",
    [
        (),
        ("frobnicate",),
        ("stat",),
        ("stat", "--frobnicate", "/a/b"),
        ("migrate", "/a/b", "tape"),
        ("ls", "--timeout", "never"),
        ("put", "-", "/a/b", "--priority", "101"),
    ],
)
def test_a_wrong_command_line_exits_with_64(memctl: Memctl, argv: tuple[str, ...]) -> None:
    outcome = memctl(*argv)
    assert outcome.status == 64
    assert memctl.connections == []


def test_a_wrong_command_line_says_what_is_wrong_and_where_help_is(memctl: Memctl) -> None:
    err = memctl("migrate", "/a/b", "tape").err
    assert "'tape' is not one of 'ram', 'disk'" in err
    assert "Value error" not in err
    assert "`memctl migrate --help`" in err


def test_help_is_no_error(memctl: Memctl) -> None:
    outcome = memctl("put", "--help")
    assert outcome.status == 0
    assert "--expect-version" in outcome.out
    assert "--runtime-dir" in outcome.out


def test_ctrl_c_is_quiet(memctl: Memctl) -> None:
    outcome = memctl("stat", "/a/b", answers={StatCube: KeyboardInterrupt()})
    assert outcome.status == 130
    assert outcome.out == outcome.err == ""


def test_common_options_are_taken_before_and_after_the_command(memctl: Memctl) -> None:
    answers = {StatCube: make_stat()}
    outcome = memctl("--timeout", "3", "--json", "stat", "/a/b", answers=answers)
    assert outcome.lines[0]["name"] == "/notes/today"
    memctl("--timeout", "3", "stat", "/a/b", "--timeout", "4", "--runtime-dir", "/run/it")
    assert memctl.connections == [(None, 3.0), (Path("/run/it"), 4.0)]
    assert memctl.client.timeouts == [3.0, 4.0]


def test_what_came_before_a_failure_is_shown(memctl: Memctl) -> None:
    def unlink(request: UnlinkCube) -> UnlinkReply | MemError:
        if request.name == "/a/2":
            return MemError(Errno.ENOENT, "no such cube")
        return UnlinkReply(freed_bytes=2048, versions=2)

    outcome = memctl("rm", "/a/1", "/a/2", "/a/3", answers={UnlinkCube: unlink})
    assert outcome.status == Errno.ENOENT
    assert outcome.out == "removed /a/1: 2 versions, 2.0 KiB\n"
    assert len(outcome.client.requests) == 2


def test_a_call_that_moves_a_payload_may_take_longer(memctl: Memctl) -> None:
    answers = {StatCube: make_stat(), Evict: EvictReply(freed_bytes=0)}
    memctl("stat", "/a/b", answers=answers)
    memctl("evict", "/a/b")
    quick, slow = memctl.client.timeouts
    assert quick is not None
    assert slow is not None
    assert slow > quick
