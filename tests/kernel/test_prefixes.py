"""Prefixes: found exactly, by whoever may read them, and gone with what they stand on."""

import random
from collections.abc import Sequence

import msgspec
import pytest

from libmem.abi import calls as c
from libmem.abi.errors import Errno
from libmem.abi.kv import KvDtype, KvHeader, KvLayers, layout_of, pack_tokens
from libmem.abi.structs import CubeType, Durability, Governance
from tests.kernel.world import Client, World

MODEL = "ab" * 32
LAYERS = (KvLayers(count=2, heads=1, key_dim=64, value_dim=64),)
GRAIN = 16
"""Rows of 64 float32 that fill a page."""


def kv(tokens: Sequence[int], start: int = 0, model: str = MODEL) -> tuple[KvHeader, bytes]:
    """A header and its payload, for the tokens behind `start`."""
    header = KvHeader(model, KvDtype.FLOAT32, LAYERS, tokens=len(tokens), start=start)
    packed = pack_tokens(tokens[start:])
    return header, packed.ljust(layout_of(header).size_bytes, b"\x55")


def write(
    user: Client, name: str, tokens: Sequence[int], start: int = 0, **options: object
) -> c.WriteReply:
    header, payload = kv(tokens, start)
    fields = {"type": CubeType.ACTIVATION, "attributes": {"kv": msgspec.to_builtins(header)}}
    return user.call(c.WriteCube(name=name, payload=payload, **{**fields, **options}))  # type: ignore[arg-type]


def find(user: Client, tokens: Sequence[int], under: str = "/") -> tuple[str, int]:
    reply = user.call(c.FindPrefix(model=MODEL, tokens=pack_tokens(tokens), under=under))
    return reply.name, reply.tokens


def test_the_longest_shared_prefix_is_found_to_the_token(user: Client) -> None:
    write(user, "/n/a", [1, 2, 3, 4])
    write(user, "/n/b", [1, 2, 9, 9, 9])
    write(user, "/n/c", [7])
    assert find(user, [1, 2, 3, 5, 6]) == ("/n/a@v1", 3)
    assert find(user, [1, 2, 9]) == ("/n/b@v1", 3)
    assert find(user, [7, 8]) == ("/n/c@v1", 1)
    assert find(user, [8]) == ("", 0)
    assert find(user, []) == ("", 0)


def test_what_is_found_is_what_a_full_comparison_finds(user: Client) -> None:
    rng = random.Random(1)
    cubes = {f"/n/{i}": [rng.randrange(3) for _ in range(rng.randrange(1, 12))] for i in range(60)}
    for name, tokens in cubes.items():
        write(user, name, tokens)
    for _ in range(200):
        prompt = [rng.randrange(3) for _ in range(rng.randrange(0, 14))]
        name, shared = find(user, prompt)
        lengths = {cube: _shared(tokens, prompt) for cube, tokens in cubes.items()}
        assert shared == max(lengths.values())
        assert not shared or lengths[name.removesuffix("@v1")] == shared


def _shared(a: Sequence[int], b: Sequence[int]) -> int:
    pairs = zip(a, b, strict=False)
    return next((at for at, (x, y) in enumerate(pairs) if x != y), min(len(a), len(b)))


def test_another_model_never_matches(user: Client) -> None:
    write(user, "/n/a", [1, 2])
    reply = user.call(c.FindPrefix(model="cd" * 32, tokens=pack_tokens([1, 2])))
    assert reply == c.PrefixReply()
    user.fails(c.MmapCube("/n/a", model="cd" * 32), Errno.EMODEL)
    user.fails(c.FindPrefix(model="xy", tokens=b""), Errno.EINVAL)
    user.fails(c.FindPrefix(model=MODEL, tokens=b"123"), Errno.EINVAL)


def test_nobody_finds_what_he_may_not_read(world: World, user: Client) -> None:
    write(user, "/n/own", [1, 2, 3, 4], governance=Governance(mode=0o600))
    write(user, "/n/all", [1, 2, 9], governance=Governance(mode=0o644))
    other = world.client(uid=user.identity.uid + 1)
    world.client(uid=0).call(c.StatNamespace("/n"))
    assert find(user, [1, 2, 3, 4]) == ("/n/own@v1", 4)
    assert find(other, [1, 2, 3, 4])[1] in (0, 2)


def test_a_part_maps_with_what_it_stands_on_and_falls_with_it(world: World, user: Client) -> None:
    tokens = list(range(3 * GRAIN))
    root = write(user, "/n/root", tokens[:GRAIN])
    middle = write(user, "/n/middle", tokens[: 2 * GRAIN], GRAIN, parents=("/n/root",))
    write(user, "/n/leaf", tokens, 2 * GRAIN, parents=("/n/middle",))
    assert find(user, tokens) == ("/n/leaf@v1", 3 * GRAIN)
    assert find(user, tokens[:GRAIN]) == ("/n/root@v1", GRAIN), "from as few parts as hold them"

    reply = user.call(c.MmapCube("/n/leaf", model=MODEL, is_whole=True))
    assert [base.id for base in reply.bases] == [middle.id, root.id]
    assert len(world.gate.bases[user.session.number, reply.handle]) == 2
    user.fails(c.Evict("/n/root"), Errno.EBUSY)
    user.call(c.MunmapCube(reply.handle))
    assert user.call(c.MmapCube("/n/leaf")).bases == ()

    user.call(c.UnlinkCube("/n/root"))
    for name in ("/n/root", "/n/middle", "/n/leaf"):
        user.fails(c.StatCube(name), Errno.ENOENT)
    assert find(user, tokens) == ("", 0)


def test_prefixes_are_there_again_after_a_restart(world: World, user: Client) -> None:
    tokens = list(range(2 * GRAIN))
    write(user, "/n/root", tokens[:GRAIN])
    write(user, "/n/leaf", tokens, GRAIN, parents=("/n/root",))
    user.call(c.Sync())
    world.crash()
    again = world.client(uid=user.identity.uid)
    assert find(again, tokens) == ("/n/leaf@v1", 2 * GRAIN)
    again.call(c.UnlinkCube("/n/root"))
    assert find(again, tokens) == ("", 0)


@pytest.mark.parametrize(
    ("start", "options", "errno"),
    [
        (GRAIN, {}, Errno.EINVAL),  # no parent
        (GRAIN, {"parents": ("/n/text",)}, Errno.EINVAL),
        (GRAIN, {"parents": ("/n/short",)}, Errno.EINVAL),
        (GRAIN, {"parents": ("/n/root",), "durability": Durability.DURABLE}, Errno.EINVAL),
        (1, {"parents": ("/n/root",)}, Errno.EINVAL),  # within a page
        (GRAIN, {"parents": ("/n/other",)}, Errno.EMODEL),
    ],
)
def test_a_part_that_continues_nothing_is_refused(
    user: Client, start: int, options: dict[str, object], errno: Errno
) -> None:
    tokens = list(range(2 * GRAIN))
    user.write("/n/text", b"words")
    write(user, "/n/root", tokens)
    write(user, "/n/short", tokens[:3])
    header, payload = kv(tokens, model="cd" * 32)
    user.call(
        c.WriteCube(
            name="/n/other",
            payload=payload,
            type=CubeType.ACTIVATION,
            attributes={"kv": msgspec.to_builtins(header)},
        )
    )
    header, payload = kv(tokens, GRAIN)
    request = c.WriteCube(
        name="/n/part",
        payload=payload,
        type=CubeType.ACTIVATION,
        attributes={"kv": {**msgspec.to_builtins(header), "start": start}},
        **options,  # type: ignore[arg-type]
    )
    user.fails(request, errno)


def test_a_header_that_lies_about_its_shape_is_refused(user: Client) -> None:
    header, payload = kv([1, 2, 3])
    good = msgspec.to_builtins(header)
    for lie in (
        {"tokens": 17},
        {"layers": [{**good["layers"][0], "key_dim": 128}]},
        {"layers": [{**good["layers"][0], "heads": 2}]},
    ):
        request = c.WriteCube(
            name="/n/a",
            payload=payload,
            type=CubeType.ACTIVATION,
            attributes={"kv": {**good, **lie}},
        )
        user.fails(request, Errno.EILSEQ)
    write(user, "/n/a", [1, 2, 3])
    user.fails(c.SetHeader("/n/a", attributes={"kv": {**good, "tokens": 2}}), Errno.EINVAL)
    user.call(c.SetHeader("/n/a", attributes={"kv": good, "note": "mine"}))
    assert find(user, [1, 2, 3]) == ("/n/a@v2", 3)
