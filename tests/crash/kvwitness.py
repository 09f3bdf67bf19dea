"""A witness that keeps KV caches as well: roots that are certain, and parts that stand on them.

A root is durable. What stands on it is cache, so it may be lost, and it goes when the root goes:
an acknowledged unlink of a root leaves none of its parts. What is there must map with its root.
"""

import os
import threading
from collections.abc import Callable, Sequence

import libmem
from libmem import CubeType, Durability
from libmem.abi.errors import Errno, MemError
from libmem.abi.kv import (
    KvLayers,
    kv_header,
    pack_tokens,
    unpack_tokens,
)
from libmem.parts import Part
from tests.caches import MODEL, attributes_of, part_of
from tests.crash.witness import LARGE, State, Witness, state_of
from tests.e2e.daemon import Daemon

__all__ = ["KvWitness", "witnesses"]

_LAYERS = KvLayers(count=3, heads=4, key_dim=64, value_dim=64)
_GRAIN = 16
_ROOTS = 3


class KvWitness(Witness):
    """See the head of this file."""

    _roots: dict[str, set[State]]
    _tokens: dict[State, list[int]]
    """What a payload of its stands for."""

    def __init__(
        self, daemon: Daemon, number: int, seed: int, progress: threading.Condition
    ) -> None:
        super().__init__(daemon, number, seed, progress)
        self._roots = {}
        self._tokens = {}

    def again(self) -> "KvWitness":
        next_one = super().again()
        assert isinstance(next_one, KvWitness)
        next_one._roots, next_one._tokens = self._roots, self._tokens
        return next_one

    def _actions(self) -> Sequence[Callable[[libmem.Client], bool]]:
        return [*super()._actions(), *[self._write_root, self._write_part] * 3, self._unlink_root]

    def _write_root(self, client: libmem.Client) -> bool:
        name = self._root()
        if self._roots.get(name, {None}) != {None}:
            return True
        tokens = [self.number, self._turn, *range(_GRAIN - 2)]
        return self._write(client, name, tokens, 0, self._roots)

    def _write_part(self, client: libmem.Client) -> bool:
        root = self._root()
        (below,) = self._roots.get(root, {None})
        if below is None:
            return True
        name = f"{root}-part-{self._dice.randrange(2)}"
        tokens = [*self._tokens[below], self._turn, *range(_GRAIN - 1)]
        return self._write(client, name, tokens, _GRAIN, {}, root)

    def _write(
        self,
        client: libmem.Client,
        name: str,
        tokens: list[int],
        start: int,
        states: dict[str, set[State]],
        *parents: str,
    ) -> bool:
        header, payload = part_of(_LAYERS, tokens, start)
        assert len(payload) >= LARGE, "counted as a page file"
        self._tokens[payload] = tokens
        if parents:
            self._cached.setdefault(name, {None}).add(payload)
        return self._change(
            {} if parents else {name: payload},
            lambda: client.write(
                name,
                payload,
                type=CubeType.ACTIVATION,
                durability=Durability.CACHE if parents else Durability.DURABLE,
                attributes=attributes_of(header),
                parents=parents,
            ),
            states,
        )

    def _unlink_root(self, client: libmem.Client) -> bool:
        root = self._root()
        if None in self._roots.get(root, {None}):
            return True
        acknowledged = self.acknowledged
        on_it = [name for name in self._cached if name.startswith(f"{root}-part-")]
        for name in on_it:
            self._cached[name].add(None)
        goes_on = self._change({root: None}, lambda: client.unlink(root), self._roots)
        if self.acknowledged > acknowledged:
            self._cached.update({name: {None} for name in on_it})
        return goes_on

    def _root(self) -> str:
        return f"/t/{self.number}/kv-{self._dice.randrange(_ROOTS)}"

    # -- comparing -----------------------------------------------------------------------------

    def verify(self, client: libmem.Client) -> None:
        """As others; each cache that is there is found, and maps with what it stands on."""
        self._verify_states(client, self._roots)
        super().verify(client)
        for name, states in self._cached.items():
            if self._roots.get(name.partition("-part-")[0]) == {None}:
                assert states == {None}, f"{name} stands on nothing"
        for payload, tokens in self._tokens.items():
            self._verify_prefix(client, payload, tokens)

    def _verify_prefix(self, client: libmem.Client, payload: State, tokens: list[int]) -> None:
        there = {state for known in (self._roots, self._cached) for (state,) in known.values()}
        reply = client.find_prefix(MODEL, pack_tokens(tokens), under=f"/t/{self.number}")
        if payload in there:
            assert reply.tokens == len(tokens)
        if reply.tokens < len(tokens):
            return
        with client.map_parts(reply.name, model=MODEL) as found:
            stored = [_stored(part) for part in found.parts]
        assert [token for each in stored for token in each][: len(tokens)] == tokens

    def _others(self, client: libmem.Client) -> set[str]:
        roots = {name for name in self._roots if state_of(client, name) is not None}
        return roots | super()._others(client)


def witnesses(daemon: Daemon, count: int, seed: int = 0) -> list[Witness]:
    """Several, one of them with KV caches, and the namespace that they write into."""
    with daemon.connect() as client:
        try:
            client.make_namespace("/t")
        except MemError as error:
            assert error.errno is Errno.EEXIST  # noqa: PT017
    progress = threading.Condition()
    kinds = [KvWitness] + [Witness] * (count - 1)
    return [kind(daemon, number, seed, progress) for number, kind in enumerate(kinds)]


def _stored(part: Part) -> list[int]:
    """The token ids in a part's memory."""
    header = kv_header(part.attributes)
    return unpack_tokens(os.pread(part.fd, 4 * (header.tokens - header.start), 0))
