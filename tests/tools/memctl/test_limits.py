"""limits: what it asks of the daemon and what it prints."""

import msgspec

from libmem.abi.calls import SetLimits, StatLimits, StatLimitsReply
from libmem.abi.control import GroupStat, GroupTierStat, Limits, TierLimits
from libmem.abi.errors import Errno, MemError
from tests.tools.memctl.fake import Memctl

TEAM = GroupStat(
    "/team",
    1,
    Limits(ram=TierLimits(min_bytes=1 << 30), io_weight=200),
    (GroupTierStat("ram", 0, 3 << 20, 1, 2, 3), GroupTierStat("disk", 0, 5 << 20)),
)
ALICE = GroupStat(
    "/team/alice", 2, Limits(disk=TierLimits(max_bytes=1 << 20)), (GroupTierStat("ram", 0, 0),)
)


def test_limits_shows_the_tree_and_follows_the_pages(memctl: Memctl) -> None:
    pages = {
        "": StatLimitsReply(groups=(TEAM,), next_cursor="/team"),
        "/team": StatLimitsReply(groups=(ALICE,)),
    }
    outcome = memctl("limits", "/team", answers={StatLimits: lambda request: pages[request.cursor]})
    lines = outcome.out.splitlines()
    assert lines[0].split()[:4] == ["GROUP", "TIER", "USED", "MIN"]
    assert lines[1].split() == [
        "team", "ram", "3.0", "MiB", "1.0", "GiB", "-", "-", "-", "200", "1", "2", "3"
    ]  # fmt: skip
    assert lines[2].split()[:3] == ["disk", "5.0", "MiB"]
    assert lines[3].startswith("    alice  ram")
    assert len(lines) == 4, "no tier that is neither used nor limited"
    assert [line["path"] for line in memctl("limits", "/team", "--json").lines] == [
        "/team", "/team/alice"
    ]  # fmt: skip


def test_limits_changes_only_what_is_given(memctl: Memctl) -> None:
    answers = {StatLimits: StatLimitsReply(groups=(TEAM,)), SetLimits: TEAM}
    memctl("limits", "/team", "--low", "2GiB", "--max", "0", answers=answers)
    memctl("limits", "/team", "--tier", "disk", "--max", "1GiB", "--io-weight", "7")
    memctl("limits", "/team", "--none")
    asked = [each.limits for each in memctl.client.requests if isinstance(each, SetLimits)]
    assert asked == [
        msgspec.structs.replace(TEAM.limits, ram=TierLimits(1 << 30, 2 << 30)),
        msgspec.structs.replace(
            TEAM.limits, disk=TierLimits(max_bytes=1 << 30), io_weight=7
        ),
        Limits(),
    ]  # fmt: skip


def test_limits_of_a_folder_that_had_none(memctl: Memctl) -> None:
    absent = MemError(Errno.ENOENT, "no limits are set for that folder")
    outcome = memctl(
        "limits", "/n/a", "--min", "1KiB", answers={StatLimits: absent, SetLimits: ALICE}
    )
    assert outcome.status == 0
    assert memctl.client.requests[1] == SetLimits("/n/a", Limits(ram=TierLimits(1024)))


def test_limits_refuses_what_is_no_tier(memctl: Memctl) -> None:
    answers = {StatLimits: StatLimitsReply(groups=(TEAM,))}
    outcome = memctl("limits", "/team", "--tier", "tape", "--min", "1KiB", answers=answers)
    assert outcome.status == Errno.EINVAL
    assert "'tape'" in outcome.err
