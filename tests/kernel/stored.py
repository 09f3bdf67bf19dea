"""Cubes that lie on disk as int8, for the tests of page files."""

import pytest

from libmem.abi import calls as c
from libmem.abi.kv import KvHeader
from libmem.abi.structs import CubeType, Durability
from tests.caches import attributes_of, header_of, payload_of, wavy
from tests.kernel.world import Client, World

__all__ = [
    "BOTH",
    "HEADER",
    "INT8_BYTES",
    "PAYLOAD",
    "TOKENS",
    "decisions",
    "draft",
    "saved_bytes",
    "write",
]

TOKENS = 60
HEADER = header_of(TOKENS)
PAYLOAD = payload_of(HEADER, wavy)
INT8_BYTES = 4096 + 4 * 64 * (TOKENS + 4)
BOTH = pytest.mark.parametrize("durability", Durability)


def write(
    user: Client,
    name: str,
    header: KvHeader = HEADER,
    durability: Durability = Durability.CACHE,
) -> c.WriteReply:
    """An activation cube."""
    return user.call(draft(name, header, durability))


def draft(
    name: str, header: KvHeader = HEADER, durability: Durability = Durability.DURABLE
) -> c.WriteCube:
    """The request."""
    return c.WriteCube(
        name,
        PAYLOAD,
        type=CubeType.ACTIVATION,
        attributes=attributes_of(header),
        durability=durability,
    )


def decisions(user: Client, name: str, action: str = "encode") -> list[str]:
    """The reasons of all decisions of a kind."""
    found = user.call(c.Explain(name=name)).decisions
    return [decision.reason for decision in found if decision.action == action]


def saved_bytes(world: World) -> int:
    """How much less the small form is charged."""
    return world.disk.charge_bytes(len(PAYLOAD)) - world.disk.charge_bytes(INT8_BYTES)
