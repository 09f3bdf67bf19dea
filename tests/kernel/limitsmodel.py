"""What limits promise, computed anew from `docs/limits.md`, and a world that watches who pays.

Each time that a payload is reclaimed or lost, its control group must hold more than is protected
for it, unless it goes for its own group's sake. The tree is the model's, the sums are those that
`check_at_rest` and the machine compare with rows and frames after every step.
"""

from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

from libmem.abi.control import Limits
from memosd.kernel.admission import Admission
from memosd.kernel.control import Group
from tests.kernel.world import World

__all__ = ["LimitedWorld", "deepest", "is_within", "protected"]

FOR_DISK = {"room was needed on disk", "the disk tier is above its high watermark"}
FOR_THE_TIER = {"above the high watermark", "the disk tier is above its high watermark"}
THROTTLE_NS = 100_000_000
NOBODYS_SAKE = {
    "asked for", "migrated to disk", "advised: dontneed",
    "the daemon stopped before it was written back",
}  # fmt: skip
"""Who asks for it by name means it; a stop is the end of all."""


def is_within(name: str, path: str) -> bool:
    """Is it that path, or below it?"""
    return path in ("/", name) or name.startswith(path + "/")


def deepest(paths: Mapping[str, Limits], name: str) -> str:
    """The group that a cube is in."""
    return max((path for path in paths if is_within(name, path) and path != name), key=len)


def protected(
    limits: Mapping[str, Limits], tier: str, used: Mapping[str, int], root: str, capacity: int
) -> dict[str, float]:
    """Group -> bytes of its own that may not be taken for what lies outside of it.

    `used`: with what is below. `root`: what is short of room; its `max`, or `capacity`, is there
    to be shared out.
    """
    found: dict[str, float] = {}

    def share_out(path: str, granted: float, spread_bytes: float) -> None:
        """`granted`: what may not be taken of the subtree; `spread_bytes`: by nobody's claim."""
        children = [each for each in limits if each != "/" and deepest(limits, each) == path]
        claims = {each: min(used[each], getattr(limits[each], tier).min_bytes) for each in children}
        claimed = sum(claims.values())
        scale = min(1.0, granted / claimed) if claimed else 1.0
        unclaimed = used[path] - claimed
        spread = min(1.0, max(0.0, spread_bytes - claimed) / unclaimed) if unclaimed > 0 else 0.0
        found[path] = (used[path] - sum(used[each] for each in children)) * spread
        for each in children:
            share = claims[each] * scale + (used[each] - claims[each]) * spread
            share_out(each, share, share)

    most = getattr(limits[root], tier).max_bytes or capacity
    share_out(root, min(capacity, most), 0.0)
    return found


class LimitedWorld(World):
    """Knows the limits that are in force, and judges each reclaim by them."""

    def __init__(self, **changes: Any) -> None:
        self.limits: dict[str, Limits] = {"/": Limits()}
        self.setting = ""
        """While limits are set: whose."""
        self.chargers: dict[str, set[str]] = {"ram": set(), "disk": set()}
        """Groups that made room in this step, by tier."""
        self.wrongs: list[str] = []
        """What was taken though it was protected."""
        self._slowed: list[Group] = []
        super().__init__(Path("unused"), **changes)

    def _boot(self) -> None:
        super()._boot()
        kernel, self._slowed = self.kernel, []
        watched: list[tuple[Any, str, Callable[..., Any]]] = [
            (kernel.parts.heat, "decide", self._decided),
            (kernel.reclaim, "make_room", self._in_ram),
            (kernel.disk_space, "make_room", self._on_disk),
            (kernel.pager.throttle, "pause", partial(self._pause, self._slowed)),
        ]
        for part, name, watch in watched:
            vars(part)[name] = partial(watch, getattr(part, name))

    def settle(self, *, limit: int = 10_000) -> None:
        """Whoever is slowed down, because a group is above its `high`, waits that long as well."""
        super().settle(limit=limit)
        while self._slowed:
            self.clock.advance(THROTTLE_NS)
            super().settle(limit=limit)

    @staticmethod
    async def _pause(slowed: list[Group], go_on: Any, group: Group) -> None:
        slowed.append(group)
        try:
            await go_on(group)
        finally:
            slowed.remove(group)

    def _in_ram(self, go_on: Any, group: Group, need_bytes: int) -> Any:
        self.chargers["ram"].add(group.path)
        return go_on(group, need_bytes)

    def _on_disk(self, go_on: Any, admission: Admission, need_bytes: int) -> Any:
        control = self.kernel.parts.namespaces.control
        group = control.group_of(admission.space, admission.name)
        self.chargers["disk"].add(group.path)
        return go_on(admission, need_bytes)

    def _decided(self, go_on: Any, cube_id: bytes, action: str, reason: str, **on: Any) -> None:
        if action in ("evict", "lost") and reason not in NOBODYS_SAKE:
            self._judge(cube_id, reason, str(on.get("group", "")))
        go_on(cube_id, action, reason, **on)

    def _judge(self, cube_id: bytes, reason: str, full: str) -> None:
        tier = "disk" if reason in FOR_DISK else "ram"
        row = self.kernel.parts.table.cube_row(cube_id)
        if row is None:
            return  # it goes with its last version, whose loss was judged
        group = deepest(self.limits, row.name)
        if group in self.chargers[tier] or self._is_resetting(group):
            return
        used = {path: self.used_by(tier, path) for path in self.limits}
        below = [
            each for each in self.limits if each != "/" and deepest(self.limits, each) == group
        ]
        own = used[group] - sum(used[each] for each in below)
        safe = []
        for root in self._roots(tier, group, reason, full, used):
            shares = protected(self.limits, tier, used, root, self._capacity(tier))
            safe.append(shares[group])
        if own <= min(safe, default=own) + 1e-6:
            self.wrongs.append(f"{row.name}: {tier} {reason} {full}, {own} of {safe} {used}")

    def _is_resetting(self, group: str) -> bool:
        """Do limits change that it gets its share by?"""
        return bool(self.setting) and is_within(group, "/" + self.setting.split("/")[1])

    def _roots(
        self, tier: str, group: str, reason: str, full: str, used: Mapping[str, int]
    ) -> list[str]:
        """For what it may have gone."""
        if reason == "direct reclaim":
            return [full or "/"]
        if reason in FOR_THE_TIER:
            return ["/"]
        above = [path for path in self.limits if is_within(group, path)]
        of = {path: getattr(self.limits[path], tier) for path in above}
        if reason == "above the high of its group":
            return [path for path in above if 0 < of[path].high_bytes < used[path]]
        return [path for path in above if path == "/" or of[path].max_bytes or of[path].high_bytes]

    def _capacity(self, tier: str) -> int:
        parts = self.kernel.parts
        account = parts.residents.account
        return account.budget_bytes if tier == "ram" else parts.namespaces.budget_bytes

    def used_by(self, tier: str, path: str) -> int:
        """What a group holds, without what is on its way back."""
        namespaces = self.kernel.parts.namespaces
        space = None if path == "/" else namespaces.find("/" + path.split("/")[1])
        group = namespaces.control.find(path, space)
        if tier == "disk":
            return namespaces.disk_held(group)
        used_bytes = self.kernel.parts.residents.account.used_by(group)
        return used_bytes - self.kernel.reclaim.freeing_bytes(group)
