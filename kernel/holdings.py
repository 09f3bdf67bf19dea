"""Holdings: who keeps which payloads in RAM by pins and mappings, since when, and how much.

Invariant: what the sessions of one user have pinned stays below that user's share of the budget,
what one session has pinned below its ceiling; a payload that one of them pins twice counts once.
A holding ends with its handle, so with its session. Kernel thread only.
"""

from collections.abc import Iterator
from itertools import islice
from typing import Final

from libmem.abi.errors import Errno, MemError
from memosd.kernel.param import Parameters
from memosd.kernel.ports import Clock, PayloadKey
from memosd.kernel.residents import Resident, Residents
from memosd.kernel.session import Session

__all__ = ["Holding", "Holdings"]

Owner = tuple[str, int]
_SHOWN_MAX: Final = 100


class Holding:
    """One handle's hold on a cube and what that stands on."""

    __slots__ = ("cube_id", "handle", "kind", "residents", "session", "since_ns")

    def __init__(self, session: Session, kind: str, cube_id: bytes) -> None:
        self.session = session
        self.kind = kind
        """pin or map."""
        self.cube_id = cube_id
        self.handle = 0
        self.since_ns = 0
        self.residents: tuple[Resident, ...] = ()

    @property
    def held_bytes(self) -> int:
        return sum(resident.charged_bytes for resident in self.residents)


class _Pinned:
    """What one session, or one user, has pinned."""

    __slots__ = ("counts", "size_bytes")

    def __init__(self) -> None:
        self.counts: dict[PayloadKey, int] = {}
        self.size_bytes = 0


class Holdings:
    """All of them, by payload and by who has them."""

    def __init__(self, limits: Parameters, residents: Residents, clock: Clock) -> None:
        self._limits = limits
        self._residents = residents
        self._clock = clock
        self._of_payload: dict[PayloadKey, dict[Holding, None]] = {}
        self._pins: dict[Holding, None] = {}
        self._pinned: dict[Owner, _Pinned] = {}

    def check_pin(self, session: Session, key: PayloadKey, charge_bytes: int) -> None:
        """May the session pin this as well? Errors: EDQUOT."""
        for owner, limit_bytes, whose in self._ceilings(session):
            pinned = self._pinned.get(owner)
            used_bytes = pinned.size_bytes if pinned else 0
            if pinned and key in pinned.counts:
                continue
            if used_bytes + charge_bytes > limit_bytes:
                raise MemError(
                    Errno.EDQUOT,
                    f"{whose} may pin no more",
                    need_bytes=charge_bytes,
                    free_bytes=max(0, limit_bytes - used_bytes),
                    pinned_bytes=used_bytes,
                )

    def _ceilings(self, session: Session) -> Iterator[tuple[Owner, int, str]]:
        of_session, uid = self._limits.pins_per_session_bytes, session.identity.uid
        if of_session:
            yield ("session", session.number), of_session, "the session"
        share = self._limits.pin_share_per_uid
        if share < 1.0:  # else the budget itself says no, with ENOMEM
            of_uid = int(share * self._residents.account.budget_bytes)
            yield ("uid", uid), of_uid, f"uid {uid}"

    def add(self, holding: Holding, residents: tuple[Resident, ...]) -> None:
        """Errors: EDQUOT, for pins; then nothing is held."""
        holding.since_ns = self._clock.wall_ns()
        for resident in residents:
            if holding.kind == "pin":
                try:
                    self.check_pin(holding.session, resident.key, resident.charged_bytes)
                except MemError:
                    self.drop(holding)
                    raise
                self._pin(holding.session, resident)
            holding.residents += (resident,)
            self._of_payload.setdefault(resident.key, {})[holding] = None
        if holding.kind == "pin":
            self._pins[holding] = None

    def _owners(self, session: Session) -> tuple[Owner, Owner]:
        return ("session", session.number), ("uid", session.identity.uid)

    def _pin(self, session: Session, resident: Resident) -> None:
        for owner in self._owners(session):
            pinned = self._pinned.setdefault(owner, _Pinned())
            count = pinned.counts.get(resident.key, 0)
            pinned.counts[resident.key] = count + 1
            pinned.size_bytes += 0 if count else resident.charged_bytes

    def _unpin(self, session: Session, resident: Resident) -> None:
        for owner in self._owners(session):
            pinned = self._pinned[owner]
            pinned.counts[resident.key] -= 1
            if not pinned.counts[resident.key]:
                del pinned.counts[resident.key]
                pinned.size_bytes -= resident.charged_bytes
            if not pinned.counts:
                del self._pinned[owner]

    def drop(self, holding: Holding) -> None:
        """The handle is let go. Idempotent."""
        residents, holding.residents = holding.residents, ()
        for resident in residents:
            of_payload = self._of_payload[resident.key]
            del of_payload[holding]
            if not of_payload:
                del self._of_payload[resident.key]
            if holding.kind == "pin":
                self._unpin(holding.session, resident)
        self._pins.pop(holding, None)

    def pinned_bytes(self, session: Session) -> int:
        """What the session's pins keep in RAM."""
        pinned = self._pinned.get(("session", session.number))
        return pinned.size_bytes if pinned else 0

    def of(self, key: PayloadKey) -> list[Holding]:
        """Who holds a payload, oldest first; of many, the first hundred."""
        return list(islice(self._of_payload.get(key, ()), _SHOWN_MAX))

    def pins(self, after: int) -> Iterator[Holding]:
        """Pins with a later handle, oldest first."""
        return (holding for holding in self._pins if holding.handle > after)
