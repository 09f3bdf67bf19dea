"""A policy that may be wrong, with LRU behind it.

Nothing is lost when a policy raises or names what is not there: all that it was told of is kept
here, LRU takes its place at once, and whoever asked for the policy is told why.
"""

from collections.abc import Callable, Iterator

import structlog

from memosd.kernel.policies.lru import Lru
from memosd.kernel.policies.policy import Candidate, Clock, Entry, Policy
from memosd.kernel.policies.table import make_policy
from memosd.kernel.ports import PayloadKey

__all__ = ["Guarded", "make_guarded"]

_log = structlog.get_logger("memosd.kernel")


class Guarded:
    """See `Policy`. `on_fault` is called once, with a line for people."""

    def __init__(self, policy: Policy, clock: Clock, on_fault: Callable[[str], None]) -> None:
        self.name = policy.name
        self._policy = policy
        self._clock = clock
        self._on_fault = on_fault
        self._entries: dict[PayloadKey, Entry] = {}
        self._held: set[PayloadKey] = set()
        self._is_fallen = False

    def insert(self, entry: Entry) -> None:
        self._entries[entry.key] = entry
        self._held.discard(entry.key)
        self._tell(lambda: self._policy.insert(entry))

    def touch(self, key: PayloadKey) -> None:
        self._tell(lambda: self._policy.touch(key))

    def cool(self, key: PayloadKey) -> None:
        self._tell(lambda: self._policy.cool(key))

    def hold(self, key: PayloadKey) -> None:
        if key in self._entries:
            self._held.add(key)
        self._tell(lambda: self._policy.hold(key))

    def release(self, key: PayloadKey) -> None:
        self._held.discard(key)
        self._tell(lambda: self._policy.release(key))

    def update(self, entry: Entry) -> None:
        if entry.key in self._entries:
            self._entries[entry.key] = entry
        self._tell(lambda: self._policy.update(entry))

    def evict(self, key: PayloadKey) -> None:
        self._forget(key)
        self._tell(lambda: self._policy.evict(key))

    def remove(self, key: PayloadKey) -> None:
        self._forget(key)
        self._tell(lambda: self._policy.remove(key))

    def candidates(self, group: int) -> Iterator[Candidate]:
        given: set[PayloadKey] = set()
        if not self._is_fallen:
            try:
                for candidate in self._policy.candidates(group):
                    self._check(candidate, group, given)
                    given.add(candidate.key)
                    yield candidate
            except Exception as error:  # noqa: BLE001 - whatever a policy does wrong
                self._fall(error)
            else:
                return
        for candidate in self._policy.candidates(group):
            if candidate.key not in given:
                yield candidate

    def explain(self, key: PayloadKey) -> dict[str, float | str]:
        if not self._is_fallen:
            try:
                return self._policy.explain(key)
            except Exception as error:  # noqa: BLE001
                self._fall(error)
        return self._policy.explain(key)

    def _check(self, candidate: Candidate, group: int, given: set[PayloadKey]) -> None:
        key = candidate.key
        entry = self._entries.get(key)
        if entry is None or entry.group != group or key in self._held or key in given:
            raise ValueError(f"{key.hex()} may not go, or not from group {group}")

    def _tell(self, call: Callable[[], None]) -> None:
        if self._is_fallen:
            call()
            return
        try:
            call()
        except Exception as error:  # noqa: BLE001 - whatever a policy does wrong
            self._fall(error)

    def _fall(self, error: Exception) -> None:
        """Let LRU take over, with all that is there, in the order in which it came."""
        failed, self._policy = self._policy, Lru(self._clock)
        self.name = self._policy.name
        self._is_fallen = True
        for entry in self._entries.values():
            self._policy.insert(entry)
        for key in self._held:
            self._policy.hold(key)
        why = (
            f"the policy {failed.name} failed, lru took its place: {type(error).__name__}: {error}"
        )
        _log.error("a policy failed", policy=failed.name, error=repr(error))
        self._on_fault(why)

    def _forget(self, key: PayloadKey) -> None:
        self._entries.pop(key, None)
        self._held.discard(key)


def make_guarded(name: str, clock: Clock, faults: dict[str, str], tier: str) -> Guarded:
    """A policy by its name. Should it fail, `faults` tells that of its tier. Errors: EINVAL."""

    def note(why: str) -> None:
        faults[tier] = why

    return Guarded(make_policy(name, clock), clock, note)
