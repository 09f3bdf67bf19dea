"""Prefixes: found exactly, by whoever may read them, and by nobody else."""

import random
from typing import Any

import pytest

from libmem.abi import calls as c
from libmem.abi.errors import Errno
from libmem.abi.kv import pack_tokens
from libmem.abi.structs import Advice, Durability, Governance, TierName
from tests.kernel.conftest import MakeWorld
from tests.kernel.fakes import SECOND_NS
from tests.kernel.kv import (
    GRAIN,
    MODEL,
    OTHER_MODEL,
    fields_of,
    find,
    kv,
    loaded,
    part,
    shared,
    state_of,
    write,
)
from tests.kernel.world import KIB, Client, World, batch_of

OPEN = Governance(mode=0o644)
CLOSED = Governance(mode=0o600)


@pytest.fixture
def world(make_world: MakeWorld) -> World:
    """Room for what these tests write."""
    return make_world(disk_budget_bytes=64 << 20, ram_budget_bytes=4096 * KIB)


@pytest.fixture
def other(world: World, user: Client) -> Client:
    """Somebody else, who may enter `/open` but not `/n`."""
    user.make("/open", mode=0o777)
    return world.client(uid=user.identity.uid + 1)


def test_the_longest_shared_prefix_is_found_to_the_token(user: Client) -> None:
    write(user, "/n/a", [1, 2, 3, 4])
    write(user, "/n/b", [1, 2, 9, 9, 9])
    write(user, "/n/c", [7])
    assert find(user, [1, 2, 3, 5, 6]) == ("/n/a", 3)
    assert find(user, [1, 2, 9]) == ("/n/b", 3)
    assert find(user, [7, 8]) == ("/n/c", 1)
    assert find(user, [8]) == ("", 0)
    assert find(user, []) == ("", 0)
    reply = user.call(c.FindPrefix(model=MODEL, tokens=pack_tokens([1, 2, 9])))
    assert reply == c.PrefixReply("/n/b@v1", 3, 5)


@pytest.mark.parametrize("seed", range(3))
def test_what_is_found_is_what_a_full_comparison_finds(
    world: World, user: Client, seed: int
) -> None:
    rng = random.Random(seed)
    user.make("/m")
    cubes: dict[str, list[int]] = {}
    for number in range(60):
        name, tail = f"/{rng.choice('nm')}/{number}", rng.choices(range(3), k=rng.randrange(1, 12))
        base = rng.choice(["", *cubes])
        if base and len(cubes[base]) >= GRAIN:
            have = len(cubes[base]) // GRAIN * GRAIN
            cubes[name] = [*cubes[base][:have], *tail]
            part(user, name, cubes[name], base)
        else:
            cubes[name] = tail
            write(user, name, tail)
    for name in rng.sample(sorted(cubes), 4):
        user.start(c.UnlinkCube(name))  # one may have taken another with it
    world.settle()
    there = {stat.name for space in ("/n", "/m") for stat in _listed(user, space)}
    assert len(there) < 57
    cubes = {name: tokens for name, tokens in cubes.items() if name in there}
    for _ in range(100):
        prompt = [rng.randrange(3) for _ in range(rng.randrange(0, 14))]
        name, count = find(user, prompt)
        lengths = {cube: shared(tokens, prompt) for cube, tokens in cubes.items()}
        assert count == max(lengths.values(), default=0)
        assert not count or lengths[name] == count


def _listed(user: Client, space: str) -> tuple[Any, ...]:
    return user.call(c.Readdir(path=space, limit=1000)).entries


def test_another_model_never_matches(user: Client) -> None:
    write(user, "/n/a", [1, 2])
    reply = user.call(c.FindPrefix(model=OTHER_MODEL, tokens=pack_tokens([1, 2])))
    assert reply == c.PrefixReply()
    error = user.fails(c.MmapCube("/n/a", model=OTHER_MODEL), Errno.EMODEL)
    assert error.detail["model"] == MODEL
    assert user.stat("/n/a").maps == 0


@pytest.mark.parametrize(
    ("model", "tokens"),
    [("xy", b""), ("", b""), (MODEL.upper(), b""), ("ab " * 32, b""), (MODEL, b"123"),
     ("ab" * (1 << 20), b""), ("\u0663" * 64, b"")],
)  # fmt: skip
def test_what_is_no_model_or_no_token_is_refused(user: Client, model: str, tokens: bytes) -> None:
    user.fails(c.FindPrefix(model=model, tokens=tokens), Errno.EINVAL)


def test_nobody_finds_what_he_may_not_read(user: Client, other: Client) -> None:
    write(user, "/open/own", [1, 2, 3, 4], governance=CLOSED)
    write(user, "/open/all", [1, 2, 9], governance=OPEN)
    write(user, "/n/deep", [1, 2, 3, 4, 5], governance=Governance(mode=0o666))
    assert find(user, [1, 2, 3, 4, 5]) == ("/n/deep", 5)
    assert find(other, [1, 2, 3, 4, 5]) == ("/open/all", 2)
    assert find(other, [1, 2, 3], under="/open") == ("/open/all", 2)
    other.fails(c.FindPrefix(model=MODEL, tokens=b"", under="/n"), Errno.EACCES)
    other.fails(c.FindPrefix(model=MODEL, tokens=b"", under="/none"), Errno.ENOENT)
    assert find(user, [1, 2, 3], under="/open/all") == ("/open/all", 2)
    assert find(user, [1, 2, 3], under="/open/al") == ("", 0)


def test_rights_count_as_they_are_now(user: Client, other: Client) -> None:
    write(user, "/open/a", [1, 2], governance=CLOSED)
    assert find(other, [1, 2]) == ("", 0)
    user.call(c.SetHeader("/open/a", governance=OPEN))
    assert find(other, [1, 2]) == ("/open/a", 2)
    user.call(c.RenameCube("/open/a", "/n/a"))
    assert find(other, [1, 2]) == ("", 0)


def test_a_part_on_what_the_caller_may_not_read_shows_nothing_of_it(
    user: Client, other: Client
) -> None:
    tokens = list(range(2 * GRAIN))
    write(user, "/n/secret-root", tokens[:GRAIN], governance=CLOSED)
    user.call(
        c.SetHeader(
            "/n/secret-root",
            attributes={**user.stat("/n/secret-root").attributes, "note": "secret"},
        )
    )
    part(user, "/open/leaf", tokens, "/n/secret-root", governance=OPEN)
    assert find(other, tokens[:GRAIN]) == ("/open/leaf", GRAIN), "not the root's name"
    assert find(user, tokens[:GRAIN]) == ("/n/secret-root", GRAIN)
    reply = other.call(c.MmapCube("/open/leaf", is_whole=True))
    assert [set(base.attributes) for base in reply.bases] == [{"kv"}]
    other.call(c.MunmapCube(reply.handle))
    user.call(c.Evict("/n/secret-root"))
    user.world.plan.fail("load", Errno.ECORRUPT)
    error = other.fails(c.MmapCube("/open/leaf", is_whole=True), Errno.ECORRUPT)
    assert "secret" not in str(error)
    assert error.detail["cube"] == "/open/leaf"


def test_what_crowds_a_namespace_hides_what_is_behind_it(user: Client, other: Client) -> None:
    """Closed cubes that share more are looked at one by one, up to a limit, per call."""
    write(user, "/n/own", [1, 2], governance=CLOSED)
    write(user, "/open/own", [1, 2], governance=CLOSED)
    for number in range(1100):
        header, payload = kv([1, 2, 3, number])
        other.start(
            c.WriteCube(
                name=f"/open/{number}", payload=payload, governance=CLOSED, **fields_of(header)
            )
        )
        if number % 200 == 0:
            other.world.settle()
    other.world.settle()
    assert find(user, [1, 2, 3, 4], under="/open") == ("", 0)
    assert find(user, [1, 2, 3, 4]) == ("/n/own", 2), "other namespaces have looks of their own"
    assert find(user, [1, 2, 2]) == ("/n/own", 2)


def test_large_rows_and_long_prompts_count_for_several_looks(user: Client, other: Client) -> None:
    """Or somebody's large headers would keep the kernel busy for a second a call."""
    write(user, "/open/own", [1, 2], governance=CLOSED)
    for number in range(12):
        assert number or find(user, [1, 2, 3, 4]) == ("/open/own", 2)
        header, payload = kv([1, 2, 3, number])
        fields = fields_of(header)
        fields["attributes"]["fat"] = "x" * 250_000
        name = f"/open/{number}"
        other.call(c.WriteCube(name=name, payload=payload, governance=CLOSED, **fields))
    assert find(user, [1, 2, 3, 4]) == ("", 0)
    assert find(other, [1, 2, 3, 4]) == ("/open/4", 4)


def test_a_cube_that_nobody_may_be_served_is_passed_over(world: World, user: Client) -> None:
    write(user, "/n/worse", [1, 2])
    soon = Governance(expires_ns=world.clock.wall_ns() + SECOND_NS)
    write(user, "/n/soon", [1, 2, 3, 4, 5], governance=soon)
    write(user, "/n/broken", [1, 2, 3])
    assert find(user, [1, 2, 3, 4, 5]) == ("/n/soon", 5)
    world.clock.advance(SECOND_NS)
    assert find(user, [1, 2, 3, 4, 5]) == ("/n/broken", 3)
    user.call(c.Evict("/n/broken"))
    world.plan.fail("load", Errno.ECORRUPT)
    user.fails(c.MmapCube("/n/broken"), Errno.ECORRUPT)
    assert find(user, [1, 2, 3, 4, 5]) == ("/n/worse", 2)
    world.pass_time(world.parameters.expiry_sweep_ns)


def test_the_version_that_shows_the_payload_is_named(user: Client) -> None:
    write(user, "/n/a", [1, 2, 3])
    write(user, "/n/a", [1, 9])
    for tokens, name in ([1, 2, 3], "/n/a@v1"), ([1, 9, 9], "/n/a@v2"):
        assert user.call(c.FindPrefix(MODEL, pack_tokens(tokens))).name == name
    user.call(c.SetHeader("/n/a", governance=OPEN))
    assert user.call(c.FindPrefix(MODEL, pack_tokens([1, 9]))).name == "/n/a@v3"
    user.unlink("/n/a@v1")
    assert find(user, [1, 2, 3]) == ("/n/a", 1)


@pytest.mark.parametrize(
    ("start", "options", "errno"),
    [
        (GRAIN, {}, Errno.EINVAL),  # no parent
        (GRAIN, {"parents": ("/n/text",)}, Errno.EINVAL),
        (GRAIN, {"parents": ("/n/short",)}, Errno.EINVAL),
        (GRAIN, {"parents": ("/n/root",), "durability": Durability.DURABLE}, Errno.EINVAL),
        (1, {"parents": ("/n/root",)}, Errno.EINVAL),  # within a page
        (GRAIN, {"parents": ("/n/other",)}, Errno.EMODEL),
        (GRAIN, {"parents": ("/n/part",)}, Errno.EINVAL),  # itself
        (GRAIN, {"parents": ("/n/none",)}, Errno.ENOENT),
    ],
)
def test_a_part_that_continues_nothing_is_refused(
    user: Client, start: int, options: dict[str, Any], errno: Errno
) -> None:
    tokens = list(range(2 * GRAIN))
    user.write("/n/text", b"words")
    write(user, "/n/root", tokens)
    write(user, "/n/part", tokens)
    write(user, "/n/short", tokens[: GRAIN - 1])
    header, payload = kv(tokens, model=OTHER_MODEL)
    user.call(c.WriteCube(name="/n/other", payload=payload, **fields_of(header)))
    header, payload = kv(tokens, GRAIN)
    fields = fields_of(header)
    fields["attributes"]["kv"]["start"] = start
    user.fails(c.WriteCube(name="/n/part", payload=payload, **fields, **options), errno)


def test_a_header_that_lies_about_its_shape_is_refused(user: Client) -> None:
    header, payload = kv([1, 2, 3])
    good = fields_of(header)["attributes"]["kv"]
    for lie in (
        {"tokens": GRAIN + 1},
        {"layers": [{**good["layers"][0], "key_dim": 128}]},
        {"layers": [{**good["layers"][0], "heads": 2}]},
    ):
        fields = {**fields_of(header), "attributes": {"kv": {**good, **lie}}}
        user.fails(c.WriteCube(name="/n/a", payload=payload, **fields), Errno.EILSEQ)
    write(user, "/n/a", [1, 2, 3])
    user.fails(c.SetHeader("/n/a", attributes={"kv": {**good, "tokens": 2}}), Errno.EINVAL)
    user.fails(c.SetHeader("/n/a", attributes={}), Errno.EINVAL)
    user.call(c.SetHeader("/n/a", attributes={"kv": good, "note": "mine"}))
    assert find(user, [1, 2, 3]) == ("/n/a", 3)


def test_prefixes_are_there_again_after_a_restart(world: World, user: Client) -> None:
    tokens = list(range(3 * GRAIN))
    write(user, "/n/root", tokens[:GRAIN])
    part(user, "/n/middle", tokens[: 2 * GRAIN], "/n/root")
    part(user, "/n/leaf", tokens, "/n/middle")
    user.call(c.Sync())
    world.crash()
    again = world.client(uid=user.identity.uid)
    assert find(again, tokens) == ("/n/leaf", 3 * GRAIN)
    assert find(again, tokens[:GRAIN]) == ("/n/root", GRAIN), "from as few parts as hold them"
    assert again.unlink("/n/root").dependents == 2
    assert find(again, tokens) == ("", 0)


@pytest.mark.parametrize("step", ["stage", "commit"])
@pytest.mark.parametrize("change", ["write", "unlink", "rename", "all"])
def test_a_failed_commit_is_taken_back_step_by_step(
    world: World, user: Client, step: str, change: str
) -> None:
    tokens = list(range(4 * GRAIN))
    user.make("/other")
    write(user, "/n/root", tokens[: 2 * GRAIN])
    part(user, "/n/part", tokens[: 3 * GRAIN], "/n/root")
    part(user, "/n/leaf", tokens, "/n/part")
    write(user, "/n/lone", [9, 9])
    user.call(c.Sync())
    before = state_of(world.kernel.parts.prefixes)
    header, payload = kv([7, 7, 7])
    requests: dict[str, c.Call[Any]] = {
        "write": c.WriteCube(name="/n/new", payload=payload, **fields_of(header)),
        "rename": c.RenameCube("/n/lone", "/other/lone"),
        "unlink": c.UnlinkCube("/n/root"),
    }
    wanted = [requests[change]] if change != "all" else list(requests.values())
    (world.store.fail_stage if step == "stage" else world.store.fail_commit)(Errno.EIO)
    asked = user.start(batch_of(*wanted))
    world.settle()
    assert asked.errno() == Errno.EIO
    assert state_of(world.kernel.parts.prefixes) == before == state_of(loaded(world))
    assert find(user, tokens)[1] == 4 * GRAIN


@pytest.mark.parametrize(
    "ask",
    [c.AdviseCube("/n/leaf", Advice.WILLNEED), c.MigrateCube("/n/leaf", TierName.RAM)],
    ids=["advise", "migrate"],
)
def test_what_brings_a_part_in_brings_all_that_it_stands_on(
    world: World, user: Client, ask: c.Call[Any]
) -> None:
    tokens = list(range(3 * GRAIN))
    names = ["/n/root", "/n/part", "/n/leaf"]
    write(user, names[0], tokens[:GRAIN])
    part(user, names[1], tokens[: 2 * GRAIN], names[0])
    part(user, names[2], tokens, names[1])
    for name in names:
        user.call(c.Evict(name))
    user.call(ask)
    world.settle()
    assert [user.stat(name).tiers for name in names] == [("ram", "disk")] * 3
