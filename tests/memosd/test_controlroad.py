"""The control road's bookkeeping: replies that wait, peers that are forgotten."""

import select
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from memosd import controlroad
from memosd.controlroad import ControlPeer, ControlRoad
from memosd.descriptors import Descriptors
from memosd.kernel.access import Identity
from memosd.kernel.session import Session

KIB = 1 << 10


class Kernel:
    """Hears who is gone."""

    def __init__(self) -> None:
        self.ended: list[Session] = []
        self.gone = self.ended.append


@pytest.fixture
def road(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[ControlRoad]:
    """A road over which nothing goes out; small limits: 4, 8 and 16 KiB may wait."""
    for number, name in enumerate(("_LATE_PEER_BYTES", "_LATE_USER_BYTES", "_LATE_BYTES"), 2):
        monkeypatch.setattr(controlroad, name, KIB << number)
    epoll = select.epoll()
    made = ControlRoad(tmp_path / "control.sock", 0o600, epoll, Descriptors(8, 8, 8, 99))
    monkeypatch.setattr(made, "send", lambda routing_id, frame: False)
    yield made
    monkeypatch.undo()
    made.close()
    epoll.close()


def head(name: str, uid: int = 1) -> Any:
    """The first frame of a message."""
    properties = {"Peer-Address": f"localhost:{uid}:1:1", "__fd": "-1"}
    return SimpleNamespace(bytes=name.encode(), get=properties.__getitem__)


def peer_of(road: ControlRoad, name: str, uid: int) -> ControlPeer:
    """A peer with a live session."""
    peer = road._peer(head(name, uid))
    peer.session = Session(uid, Identity(uid=uid, gid=1, pid=1), name, 0)
    return peer


def late(peer: ControlPeer, kib: int) -> None:
    """So many replies of a KiB."""
    for _ in range(kib):
        peer.reply(bytes(KIB))


def hung_up(road: ControlRoad) -> list[Session]:
    """Whose session ends in the next turn."""
    kernel = Kernel()
    assert road.wait_s(None) is not None
    road.drain(kernel)  # type: ignore[arg-type]
    return kernel.ended


def test_a_peer_with_too_many_late_replies_is_hung_up_on(road: ControlRoad) -> None:
    peer = peer_of(road, "deaf", 1)
    late(peer, 4)
    assert hung_up(road) == []
    late(peer, 1)
    assert peer.late_bytes == 0
    assert hung_up(road) == [peer.session]
    late(peer, 9)  # what is still under way for it is nothing to anybody
    assert (peer.late_bytes, road._slow, dict(road._late_by_user)) == (0, set(), {})
    assert road._peer(head("deaf")) is not peer


def test_the_peers_of_one_user_share_a_limit(road: ControlRoad) -> None:
    first, second, third = (peer_of(road, name, 1) for name in "abc")
    late(first, 3)
    late(second, 4)
    late(third, 1)
    assert hung_up(road) == []
    late(third, 1)
    assert hung_up(road) == [second.session]  # the one with most
    assert (first.late_bytes, third.late_bytes) == (3 * KIB, 2 * KIB)


def test_all_users_together_have_a_limit(road: ControlRoad) -> None:
    greedy = [peer_of(road, f"greedy-{n}", 1) for n in range(2)]
    modest = [peer_of(road, f"modest-{n}", 2 + n) for n in range(3)]
    late(greedy[0], 3)
    late(greedy[1], 4)
    for peer in modest:
        late(peer, 3)
    assert hung_up(road) == []
    assert sum(road._late_by_user.values()) == 16 * KIB
    late(modest[0], 1)
    assert hung_up(road) == [greedy[1].session]
    assert [peer.late_bytes for peer in modest] == [4 * KIB, 3 * KIB, 3 * KIB]


def test_replies_that_get_through_late_are_no_longer_counted(
    road: ControlRoad, monkeypatch: pytest.MonkeyPatch
) -> None:
    peer = peer_of(road, "slow", 1)
    late(peer, 4)
    sent: list[bytes] = []

    def send(_routing_id: bytes, frame: bytes) -> bool:
        sent.append(frame)
        return True

    monkeypatch.setattr(road, "send", send)
    late(peer, 1)
    assert len(sent) == 5
    assert (peer.late_bytes, road._slow, dict(road._late_by_user)) == (0, set(), {})


def test_who_arrives_among_too_many_strangers_is_not_forgotten(
    road: ControlRoad, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(controlroad, "_STRANGERS_MAX", 3)
    live = peer_of(road, "live", 1)
    strangers = [road._peer(head(f"stranger-{n}")) for n in range(2)]
    newcomer = road._peer(head("new"))
    assert road._peer(head("new")) is newcomer
    assert road._peer(head("live")) is live
    assert road._peer(head("stranger-0")) is not strangers[0]
