"""Lineage through real clients: what was derived is gone, or outdated, for everybody at once."""

import pytest

import libmem
from libmem import CubeType, Durability
from libmem.abi.errors import Errno, MemError
from tests.adapters import attributes_of, config, factors, packed
from tests.e2e.actor import Actor
from tests.e2e.daemon import Daemon

DERIVED = {"derivation": {"recipe": "test"}}


def refused(client: libmem.Client, name: str) -> Errno:
    with pytest.raises(MemError) as error:
        client.map(name)
    return error.value.errno


def test_an_adapter_is_outdated_with_its_text(client: libmem.Client) -> None:
    client.write("/t/fact", "The release is on Tuesday.")
    client.write(
        "/t/adapter",
        packed(factors()),
        type=CubeType.PARAMETRIC,
        parents=("/t/fact",),
        attributes={**attributes_of(), **DERIVED},
    )
    client.write(
        "/t/summary", "Tuesday it is, the release.", parents=("/t/fact",), attributes=DERIVED
    )
    assert "/t/summary" in [hit.name for hit in client.search("release", under="/t")]
    receipt = client.write("/t/fact", "The release is on Friday.").receipt
    assert receipt is not None
    assert {each.name for each in receipt.fallen} == {"/t/adapter", "/t/summary"}
    assert refused(client, "/t/adapter") is Errno.EOUTDATED
    found = {hit.name: hit.snippet for hit in client.search("release", under="/t")}
    assert "/t/summary" not in found
    assert all("Tuesday" not in snippet for snippet in found.values())
    with client.map("/t/adapter", allow_outdated=True) as mapping:
        assert bytes(mapping) == packed(factors())
    names = [node.name for node in client.lineage("/t/adapter").nodes]
    assert names == ["/t/adapter", "/t/fact"]


def test_another_process_finds_nothing_of_it(shared: Daemon, client: libmem.Client) -> None:
    client.write("/t/fact", "one")
    client.write(
        "/t/cache", bytes(1 << 20), type=CubeType.BLOB, durability=Durability.CACHE,
        parents=("/t/fact",), attributes=DERIVED,
    )  # fmt: skip
    program = """
mapping = client.map("/t/cache")
say("mapped")
hear()
say(str(len(mapping)))
try:
    client.map("/t/cache")
except libmem.MemError as error:
    say(error.errno.name)
mapping.close()
"""
    with Actor(shared, program) as other:
        other.expect("mapped")
        client.write("/t/fact", "two")
        other.tell()
        other.expect(str(1 << 20))  # what is mapped stays
        other.expect("ENOENT")
        other.end()


def test_malicious_adapters_leave_the_daemon_alone(client: libmem.Client) -> None:
    for payload in (
        (1 << 62).to_bytes(8, "little") + b"{}",
        packed(factors())[:-1],
        packed(factors(rank=3)),
        packed({}),
        packed(factors(), __metadata__={"a": 1}),
        bytes(4 << 20),
    ):
        with pytest.raises(MemError) as error:
            client.write(
                "/t/adapter", payload, type=CubeType.PARAMETRIC, attributes=attributes_of()
            )
        assert error.value.errno is Errno.EILSEQ
    with pytest.raises(MemError) as error:
        client.write(
            "/t/adapter", packed(factors()), type=CubeType.PARAMETRIC,
            attributes=attributes_of(config(modules_to_save=["lm_head"])),
        )  # fmt: skip
    assert error.value.errno is Errno.EINVAL
    assert list(client.list("/t")) == []
