"""evict, migrate, advise, pin, pins: what is asked, shown and let go."""

import pytest

from libmem.abi.calls import (
    AdviceOutcome,
    AdviseCube,
    AdviseReply,
    Evict,
    EvictReply,
    Info,
    ListPins,
    ListPinsReply,
    MigrateCube,
    MigrateReply,
    PinStat,
)
from libmem.abi.errors import Errno, MemError
from libmem.abi.structs import Advice, TierName
from memosd.tools.memctl import residence
from tests.tools.memctl.fake import Memctl


def test_evict(memctl: Memctl) -> None:
    outcome = memctl("evict", "/a/b", answers={Evict: EvictReply(freed_bytes=94 << 20)})
    assert outcome.out == "/a/b: 94.0 MiB freed\n"


def test_migrate(memctl: Memctl) -> None:
    outcome = memctl(
        "migrate", "/a/b", "disk", "--json", answers={MigrateCube: MigrateReply(tiers=("disk",))}
    )
    assert outcome.lines == [{"name": "/a/b", "tiers": ["disk"]}]
    assert outcome.client.requests == [MigrateCube(name="/a/b", tier=TierName.DISK)]


def test_pin_holds_and_lets_go(memctl: Memctl) -> None:
    outcome = memctl("pin", "/a/b", "--seconds", "0")
    assert outcome.status == 0
    assert outcome.out == "/a/b: pinned\n/a/b: let go\n"
    assert memctl.client.held_pins == 0


def test_pin_until_ctrl_c(memctl: Memctl, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(residence, "_HEARTBEAT_S", 0.001)
    held: list[int] = []

    def look(_request: Info) -> object:
        held.append(memctl.client.held_pins)
        return KeyboardInterrupt() if len(held) == 3 else None

    outcome = memctl("pin", "/a/b", answers={Info: look})
    assert outcome.status == 130
    assert held == [1, 1, 1]
    assert memctl.client.held_pins == 0


def test_pin_says_so_when_a_restart_lost_it(
    memctl: Memctl, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(residence, "_HEARTBEAT_S", 0.001)

    def lose(_request: Info) -> None:
        memctl.client.held_pins = 0

    outcome = memctl("pin", "/a/b", answers={Info: lose})
    assert outcome.status == Errno.ESTALE
    assert "the pin is gone" in outcome.err


def test_a_hint_says_what_became_of_it(memctl: Memctl) -> None:
    reply = AdviseReply(AdviceOutcome.REFUSED, "no room: 7 bytes short", took_ns=5)
    outcome = memctl(
        "advise", "/a/b", "willneed", "--wait", "--deadline", "1.5", answers={AdviseCube: reply}
    )
    assert (outcome.status, outcome.out) == (0, "/a/b: refused: no room: 7 bytes short\n")
    assert outcome.client.requests == [AdviseCube("/a/b", Advice.WILLNEED, 1_500_000_000, True)]
    (row,) = memctl("advise", "/a/b", "cold", "--json").lines
    assert (row["name"], row["outcome"], row["took_ns"]) == ("/a/b", "refused", 5)


def test_a_hint_about_what_cannot_be_read_fails(memctl: Memctl) -> None:
    reply = AdviseReply(AdviceOutcome.FAILED, "EIO: no", errno=int(Errno.EIO))
    outcome = memctl("advise", "/a/b", "willneed", "--wait", answers={AdviseCube: reply})
    assert outcome.status == Errno.EIO


def test_pins_are_listed(memctl: Memctl) -> None:
    pin = PinStat(
        handle=4, session=2, uid=0, pid=77, client="work\x1b[31m", name="/a/b",
        pinned_bytes=94 << 20, since_ns=1_700_000_000_000_000_000,
    )  # fmt: skip
    answers = {ListPins: ListPinsReply(pins=(pin,))}
    title, row = memctl("pins", answers=answers).out.splitlines()
    assert title.split()[:4] == ["SESSION", "USER", "PID", "PINNED"]
    assert row.split()[:3] == ["2", "root", "77"]
    assert row.endswith("work\\x1b[31m  /a/b")
    assert memctl("pins", "--json").lines[0]["pinned_bytes"] == 94 << 20
    outcome = memctl("pins", answers={ListPins: ListPinsReply(pins=())})
    assert (outcome.out, outcome.err) == ("", "nothing is pinned\n")


def test_a_pin_that_cannot_be_had(memctl: Memctl, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(name: str) -> object:
        raise MemError(Errno.ENOMEM, "no room", need_bytes=10, free_bytes=1)

    monkeypatch.setattr(memctl.client, "pin", refuse)
    outcome = memctl("pin", "/a/b")
    assert outcome.status == Errno.ENOMEM
    assert outcome.out == ""
