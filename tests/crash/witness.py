"""A writer that remembers what it was told, to compare with what is there after a crash.

It is a thread of the test with a client of its own, and good for one life of the daemon: `again`
makes the next one, with the same memory.

A witness has names of its own below `/t/<number>/`. Its memory of each name is the set of states
that it may be in: one state once the daemon answered, the one before and the one after while an
answer is missing. A state is a payload, or None where nothing is. Invariant that `verify` checks:
after a crash each name is in one of those states, whole, and findable where it is text.
"""

import random
import threading
from collections.abc import Callable, Sequence

import numpy as np

import libmem
from libmem import CubeType, Durability
from libmem.abi.errors import Errno, MemError
from libmem.options import CubeOptions
from tests.caches import Array, attributes_of, header_of, payload_of, wavy
from tests.e2e.daemon import PATIENCE_S, Daemon

__all__ = ["LARGE", "State", "Witness", "state_of"]

LARGE = 100_000
"""Bytes: a page file, by value."""

_LOST = frozenset({Errno.ECONNRESET, Errno.ETIMEDOUT})
"""The outcome is unknown."""
_GONE = frozenset({Errno.ECONNREFUSED, Errno.ESTALE, Errno.ESHUTDOWN})
"""Nothing was done, and nothing more can be."""

State = bytes | None


class Witness(threading.Thread):
    """Writes until the daemon is gone, or until told to `rest`."""

    def __init__(
        self, daemon: Daemon, number: int, seed: int, progress: threading.Condition
    ) -> None:
        """`progress`: notified whenever the daemon has answered, and at the end."""
        super().__init__(name=f"witness {number}")
        self.number = number
        self.acknowledged = 0
        """Mutations that were answered."""
        self.refused: list[MemError] = []
        """Clear errors, after which everything must be as before."""
        self.surprise: BaseException | None = None
        self._dice = random.Random(f"{number} {seed}")
        self._daemon = daemon
        self._turn = 0
        self._states: dict[str, set[State]] = {}
        self._cached: dict[str, set[State]] = {}
        """Names of cache cubes: any state since the last sync will do, and absence."""
        self._is_told_to_rest = threading.Event()
        self._progress = progress
        self._is_over = False

    def again(self) -> "Witness":
        """A fresh thread that goes on with this one's names and memory."""
        next_one = type(self)(self._daemon, self.number, self._turn, self._progress)
        next_one._turn = self._turn
        next_one._states, next_one._cached = self._states, self._cached
        return next_one

    def wait_for(self, is_so: Callable[[], bool]) -> None:
        """Wait until an answer has made it so, or this witness has ended."""
        with self._progress:
            assert self._progress.wait_for(lambda: is_so() or self._is_over, PATIENCE_S)

    def wait_for_more(self, mutations: int) -> None:
        """Wait until so many more were acknowledged."""
        wanted = self.acknowledged + mutations
        self.wait_for(lambda: self.acknowledged >= wanted)

    def wind_up(self) -> None:
        """Make what it is doing its last act. Where that waits for a daemon, give it one."""
        self._is_told_to_rest.set()

    def rest(self) -> None:
        """Wait for the end of its last act; raise what it did not expect."""
        self.wind_up()
        self.join(PATIENCE_S)
        assert not self.is_alive(), "the witness hangs"
        if self.surprise is not None:
            raise self.surprise

    def run(self) -> None:
        try:
            with self._daemon.connect(timeout_s=PATIENCE_S) as client:
                while not self._is_told_to_rest.is_set() and self.act(client):
                    pass
        except MemError as error:
            if error.errno not in _GONE | _LOST:
                self.surprise = error
        except BaseException as error:  # noqa: BLE001 - raised by `rest`, on the test's thread
            self.surprise = error
        finally:
            with self._progress:
                self._is_over = True
                self._progress.notify_all()

    # -- writing -------------------------------------------------------------------------------

    def act(self, client: libmem.Client) -> bool:
        """One random change; False when the daemon is gone."""
        self._turn += 1
        return self._dice.choice(self._actions())(client)

    def _actions(self) -> Sequence[Callable[[libmem.Client], bool]]:
        """What it may do, each as often as it is likely."""
        return (
            [self._write_small] * 4
            + [self._write_large] * 2
            + [self._fill, self._cache, self._unlink, self._rename, self._sync]
            + [self._int8, self._int8_cache]
        )

    def _write_small(self, client: libmem.Client) -> bool:
        name, payload = self._pick("small"), self._payload(50)
        return self._change({name: payload}, lambda: client.write(name, payload))

    def _write_large(self, client: libmem.Client) -> bool:
        name, payload = self._pick("large"), self._payload(LARGE)
        return self._change({name: payload}, lambda: client.write(name, payload))

    def _fill(self, client: libmem.Client) -> bool:
        name, payload = self._pick("large"), self._payload(LARGE)

        def fill() -> None:
            memory = client.create(name, len(payload), type=CubeType.PLAINTEXT)
            memory.copy_in(payload)
            memory.seal()

        return self._change({name: payload}, fill)

    def _unlink(self, client: libmem.Client) -> bool:
        there = self._there()
        if not there:
            return True
        name = self._dice.choice(there)
        return self._change({name: None}, lambda: client.unlink(name))

    def _rename(self, client: libmem.Client) -> bool:
        there, new = self._there(), f"/t/{self.number}/renamed-{self._turn}"
        if not there:
            return True
        old = self._dice.choice(there)
        (payload,) = self._states[old]
        return self._change({old: None, new: payload}, lambda: client.rename(old, new))

    def _cache(self, client: libmem.Client) -> bool:
        name, payload = f"/t/{self.number}/cache-{self._dice.randrange(3)}", self._payload(LARGE)
        self._cached.setdefault(name, {None}).add(payload)
        return self._change(
            {},
            lambda: client.write(name, payload, type=CubeType.BLOB, durability=Durability.CACHE),
        )

    def _int8(self, client: libmem.Client) -> bool:
        name, (payload, fields) = self._pick("int8"), self._kv(Durability.DURABLE)
        return self._change({name: payload}, lambda: client.write(name, payload, **fields))

    def _int8_cache(self, client: libmem.Client) -> bool:
        name, (payload, fields) = f"/t/{self.number}/int8-cache", self._kv(Durability.CACHE)
        self._cached.setdefault(name, {None}).add(payload)
        return self._change({}, lambda: client.write(name, payload, **fields))

    def _sync(self, client: libmem.Client) -> bool:
        def sync() -> None:
            client.sync()
            # All of one thread: what is there now is what was written last.
            for name in self._cached:
                self._cached[name] = {state_of(client, name)}

        return self._change({}, sync)

    def _change(
        self,
        after: dict[str, State],
        change: Callable[[], object],
        states: dict[str, set[State]] | None = None,
    ) -> bool:
        """Make a change after which names are in these states. False when the daemon is gone."""
        states = self._states if states is None else states
        before = {name: states.get(name, {None}) for name in after}
        for name, state in after.items():
            states[name] = before[name] | {state}
        try:
            change()
        except MemError as error:
            if error.errno in _LOST:
                return False
            states.update(before)
            if error.errno in _GONE:
                return False
            with self._progress:
                self.refused.append(error)
                self._progress.notify_all()
            return True
        states.update({name: {state} for name, state in after.items()})
        with self._progress:
            self.acknowledged += 1
            self._progress.notify_all()
        return True

    def _pick(self, kind: str) -> str:
        return f"/t/{self.number}/{kind}-{self._dice.randrange(12)}"

    def _there(self) -> list[str]:
        return [name for name, states in self._states.items() if None not in states]

    def _payload(self, size_bytes: int) -> bytes:
        """Text with a word that no other payload has."""
        return f"w{self.number}x{self._turn} ".encode().ljust(size_bytes, b".")

    def _kv(self, durability: Durability) -> tuple[bytes, CubeOptions]:
        """A KV cache to be stored as int8, which gives such values back exactly."""
        header = header_of(LARGE // 400)

        def plane(number: int, rows: int, dim: int) -> Array:
            return np.broadcast_to(wavy(self._turn + number, 1, dim), (rows, dim))

        payload = payload_of(header, plane)
        return payload, {
            "type": CubeType.ACTIVATION,
            "attributes": attributes_of(header),
            "durability": durability,
        }

    # -- comparing -----------------------------------------------------------------------------

    def verify(self, client: libmem.Client) -> None:
        """Compare with the daemon, and know again what is there."""
        self._verify_states(client, self._states)
        self._verify_states(client, self._cached)
        self._verify_listing(client)
        self._verify_search(client)

    def _verify_states(self, client: libmem.Client, known: dict[str, set[State]]) -> None:
        for name, states in known.items():
            found = state_of(client, name)
            assert found in states, f"{name}: {_shown(found)}, not one of {_all_shown(states)}"
            known[name] = {found}

    def _verify_listing(self, client: libmem.Client) -> None:
        listed = {stat.name for stat in client.list(f"/t/{self.number}", is_recursive=True)}
        assert listed == {*self._there(), *self._others(client)}

    def _others(self, client: libmem.Client) -> set[str]:
        """What else is there, beside what is certain."""
        return {name for name in self._cached if state_of(client, name) is not None}

    def _verify_search(self, client: libmem.Client) -> None:
        for name in self._there():
            (payload,) = self._states[name]
            assert payload is not None
            if not payload.startswith(b"w"):
                continue  # no words: a KV cache
            word = payload.split(maxsplit=1)[0].decode()
            hits = [hit.name for hit in client.search(word, under=f"/t/{self.number}")]
            assert hits == [name], f"{word} is in {name}"


def state_of(client: libmem.Client, name: str) -> State:
    try:
        return client.read(name)
    except MemError as error:
        if error.errno is not Errno.ENOENT:
            raise
        return None


def _shown(state: State) -> str:
    return "nothing" if state is None else f"{state[:20]!r} of {len(state)} bytes"


def _all_shown(states: set[State]) -> str:
    return ", ".join(_shown(state) for state in states)
