"""KV cubes for the kernel's tests: small ones, with tokens that a test chooses."""

import re
from collections.abc import Sequence
from typing import Any

from libmem.abi import calls as c
from libmem.abi.kv import KvHeader, KvLayers, pack_tokens
from libmem.abi.structs import CubeType
from memosd.kernel.ledger import Ledger
from memosd.kernel.prefixes import Prefixes
from tests.caches import MODEL, attributes_of, part_of
from tests.kernel.world import Client, World

__all__ = [
    "GRAIN",
    "MODEL",
    "OTHER_MODEL",
    "fields_of",
    "find",
    "kv",
    "loaded",
    "part",
    "shared",
    "state_of",
    "write",
]

OTHER_MODEL = "cd" * 32
LAYERS = KvLayers(count=1, heads=1, key_dim=256, value_dim=256)
GRAIN = 4
"""Rows of 256 float32 that fill a page."""


def kv(tokens: Sequence[int], start: int = 0, model: str = MODEL) -> tuple[KvHeader, bytes]:
    """A header and its payload, for the tokens behind `start`: 12 KiB for each grain or less."""
    return part_of(LAYERS, tokens, start, model)


def fields_of(header: KvHeader) -> dict[str, Any]:
    """Type and attributes of a write."""
    return {"type": CubeType.ACTIVATION, "attributes": attributes_of(header)}


def write(
    user: Client, name: str, tokens: Sequence[int], start: int = 0, **options: Any
) -> c.WriteReply:
    """A whole cube, or what is behind `start`."""
    header, payload = kv(tokens, start)
    return user.call(c.WriteCube(name=name, payload=payload, **{**fields_of(header), **options}))


def part(user: Client, name: str, tokens: Sequence[int], base: str, **options: Any) -> c.WriteReply:
    """What is behind all whole grains of the base."""
    have = user.stat(base).attributes["kv"]["tokens"] // GRAIN * GRAIN
    return write(user, name, tokens, have, parents=(base,), **options)


def find(user: Client, tokens: Sequence[int], under: str = "/") -> tuple[str, int]:
    """(name without its version, shared tokens)"""
    reply = user.call(c.FindPrefix(model=MODEL, tokens=pack_tokens(tokens), under=under))
    return re.sub(r"@v\d+\Z", "", reply.name), reply.tokens


def state_of(prefixes: Prefixes) -> tuple[Any, ...]:
    """All that it knows, to be compared."""
    fields = vars(prefixes)
    return (
        {key: (e.cube_id, e.space, e.base, e.start) for key, e in fields["_entries"].items()},
        fields["_lame"],
        {base: keys for base, keys in fields["_dependents"].items() if keys},
        {
            place: [entry.key for entry in vars(order)["_entries"]]
            for place, order in fields["_orders"].items()
        },
    )


def loaded(world: World) -> Prefixes:
    """As a boot would make it of the durable rows."""
    table = world.kernel.parts.table
    return Prefixes(Ledger(world.store, world.io), world.store, table)


def shared(a: Sequence[int], b: Sequence[int]) -> int:
    """How many tokens two strings share from the start: the truth."""
    pairs = zip(a, b, strict=False)
    return next((at for at, (x, y) in enumerate(pairs) if x != y), min(len(a), len(b)))
