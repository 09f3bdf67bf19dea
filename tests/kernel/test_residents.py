"""Residents: who holds what, what it is charged to, and the assertions that guard both."""

from typing import NamedTuple

import pytest

from libmem.abi.control import Limits, TierLimits
from libmem.abi.errors import Errno, MemError
from memosd.kernel.accounts import TierAccount
from memosd.kernel.control import Group
from memosd.kernel.policies.lru import Lru
from memosd.kernel.residents import Resident, Residents


class Frame(NamedTuple):
    """Memory of no process."""

    fd: int = 0
    size_bytes: int = 10
    is_sealed: bool = True


def space(number: int, ram_bytes: int = 0) -> Group:
    """The control group of a namespace with a RAM quota."""
    group = Group(number, f"/{number}", space=number, parent=None)
    group.limits = Limits(ram=TierLimits(max_bytes=ram_bytes))
    return group


@pytest.fixture
def residents() -> Residents:
    """A budget of 100 bytes in 5 frames."""
    return Residents(TierAccount("ram", 100, 5), Lru(lambda: 0.0))


def add(residents: Residents, where: Group, key: bytes, charge: int = 10) -> Resident:
    """A resident of that charge."""
    residents.account.charge(where, charge)
    resident = Resident(b"cube", key, Frame(), where)  # type: ignore[arg-type]
    resident.charged_bytes = charge
    residents.add(resident)
    return resident


def order(residents: Residents) -> list[bytes]:
    """Who would go, best first."""
    return [victim.key for victim in residents.victims(residents.account.groups())]


def test_what_is_held_is_no_victim_until_all_have_let_go(residents: Residents) -> None:
    home = space(1)
    one, two = add(residents, home, b"1"), add(residents, home, b"2")
    for kind in ("pins", "maps", "busy"):
        residents.hold(one, kind)
        assert order(residents) == [b"2"]
    for kind in ("maps", "busy"):
        residents.let_go(one, kind)
        assert order(residents) == [b"2"]
    residents.let_go(one, "pins")
    assert order(residents) == [b"2", b"1"], "just used, so last"
    assert residents.held_bytes() == 0
    assert not two.is_held


def test_what_was_read_in_sequence_goes_first_when_let_go(residents: Residents) -> None:
    home = space(1)
    add(residents, home, b"1")
    last = add(residents, home, b"2")
    last.is_sequential = True
    residents.hold(last, "maps")
    residents.let_go(last, "maps")
    assert order(residents) == [b"2", b"1"]


def test_victims_of_one_namespace_are_its_own(residents: Residents) -> None:
    one, other = space(1), space(2)
    add(residents, one, b"1")
    add(residents, other, b"2")
    assert [victim.key for victim in residents.victims([other.number])] == [b"2"]


def test_a_move_is_all_or_nothing(residents: Residents) -> None:
    one, small = space(1), space(2, ram_bytes=15)
    add(residents, one, b"1")
    add(residents, one, b"2")
    residents.move(b"1", small)
    account = residents.account
    assert (account.used_by(one), account.used_by(small), account.used_bytes) == (10, 10, 20)
    with pytest.raises(MemError) as caught:
        residents.move(b"2", small)
    assert caught.value.errno is Errno.EDQUOT
    assert (account.used_by(one), account.used_by(small), account.used_bytes) == (10, 10, 20)
    assert account.used_frames == 2
    residents.move(b"absent", small)


@pytest.mark.parametrize(
    ("held", "need", "errno", "detail"),
    [
        ([], 100, None, {}),
        ([], 101, Errno.ENOMEM, {"need_bytes": 101, "free_bytes": 100}),
        ([60], 41, Errno.ENOMEM, {"need_bytes": 41, "free_bytes": 40}),
        ([60], 40, None, {}),
        ([1] * 5, 1, Errno.ENOMEM, {"frames": 5}),
        ([0] * 5, 0, Errno.ENOMEM, {"frames": 5}),
    ],
)
def test_a_shortage_says_what_is_short(
    residents: Residents, held: list[int], need: int, errno: Errno | None, detail: dict[str, int]
) -> None:
    home = space(1)
    for number, charge in enumerate(held):
        add(residents, home, bytes([number]), charge)
    shortage = residents.account.shortage(home, need)
    assert (shortage.errno if shortage else None) is errno
    assert (shortage.detail if shortage else {}) == detail


def test_a_quota_is_short_before_the_budget_is(residents: Residents) -> None:
    home = space(1, ram_bytes=50)
    shortage = residents.account.shortage(home, 200)
    assert shortage is not None
    assert shortage.errno is Errno.EDQUOT
    assert not residents.account.can_ever_fit(home, 51)
    assert residents.account.can_ever_fit(home, 50)
    assert not residents.account.can_ever_fit(space(2), 101)


def test_broken_promises_of_callers_are_caught(residents: Residents) -> None:
    home = space(1)
    one = add(residents, home, b"1")
    with pytest.raises(AssertionError, match="one frame"):
        residents.add(one)
    with pytest.raises(AssertionError, match="without room"):
        residents.account.charge(home, 1000)
    residents.hold(one, "pins")
    with pytest.raises(AssertionError, match="never a victim"):
        residents.drop(one, is_reclaim=True)


def test_accounts_of_nobody_are_not_kept(residents: Residents) -> None:
    home = space(1)
    residents.drop(add(residents, home, b"1"), is_reclaim=True)
    account = residents.account
    account.release(home, 10)
    assert (account.used_bytes, account.used_frames, account.used_by(home)) == (0, 0, 0)
    assert account.groups() == []
    assert account.__dict__["_used"] == {}
