"""Names, as every call that takes one sees them."""

from typing import Any

import pytest

from libmem.abi import calls as c
from libmem.abi.errors import Errno
from libmem.abi.limits import (
    NAME_MAX_BYTES,
    SEGMENT_MAX_BYTES,
)
from tests.kernel.world import KIB, Client

PAGED = 4 * KIB
"""Beyond the inline limit of these tests."""


BAD_NAMES = {
    "": Errno.EINVAL,
    "n/a": Errno.EINVAL,
    "/": Errno.EINVAL,
    "/n": Errno.EINVAL,
    "/n/": Errno.EINVAL,
    "//a": Errno.EINVAL,
    "/n//a": Errno.EINVAL,
    "/n/../m/a": Errno.EINVAL,
    "/n/.": Errno.EINVAL,
    "/n/..": Errno.EINVAL,
    "/n/a\0b": Errno.EINVAL,
    "/n/a\nb": Errno.EINVAL,
    "/n/a\x1bb": Errno.EINVAL,
    "/n/a\u202eb": Errno.EINVAL,
    "/n/" + "x" * (SEGMENT_MAX_BYTES + 1): Errno.ENAMETOOLONG,
    "/n/" + "ü" * (SEGMENT_MAX_BYTES // 2 + 1): Errno.ENAMETOOLONG,
    "/n/" + "x" * 5000: Errno.ENAMETOOLONG,
    "/n" + "/x" * (NAME_MAX_BYTES // 2): Errno.ENAMETOOLONG,
}


@pytest.mark.parametrize("name", BAD_NAMES, ids=lambda name: ascii(name[:20]))
def test_a_name_that_is_none_is_refused_by_every_call(user: Client, name: str) -> None:
    requests: list[c.Call[Any]] = [
        c.WriteCube(name=name, payload=b"x"),
        c.CreateCube(name=name, size_bytes=1),
        c.ReadCube(name=name),
        c.MmapCube(name=name),
        c.StatCube(name=name),
        c.UnlinkCube(name=name),
        c.RenameCube(name=name, new_name="/n/b"),
        c.RenameCube(name="/n/a", new_name=name),
        c.SetHeader(name=name),
        c.Explain(name=name),
        c.Evict(name=name),
    ]
    user.write("/n/a", b"x")
    for request in requests:
        user.fails(request, BAD_NAMES[name])
    assert user.read("/n/a") == b"x"


@pytest.mark.parametrize(
    "name",
    [
        "/n/" + "x" * SEGMENT_MAX_BYTES,
        "/n" + "/x" * (NAME_MAX_BYTES // 2 - 1),
        "/n/.hidden",
        "/n/...",
        "/n/a b",
        "/n/a@b",
        "/n/a@v0",
        "/n/ümlaut/日本",
        "/n/a'\"$(x)",
    ],
    ids=lambda name: ascii(name[:20]),
)
def test_any_other_name_is_a_name(user: Client, name: str) -> None:
    user.write(name, b"x")
    assert user.read(name) == b"x"
    assert user.read(name + "@v1") == b"x"
    listed = user.call(c.Readdir(path="/n", is_recursive=True))
    assert [entry.name for entry in listed.entries] == [name]
    user.unlink(name)


def test_a_new_name_cannot_look_like_a_version(user: Client) -> None:
    user.fails(c.WriteCube(name="/n/a@v1", payload=b"x"), Errno.EINVAL)
    user.write("/n/a", b"x")
    user.fails(c.RenameCube(name="/n/a", new_name="/n/b@v2"), Errno.EINVAL)
    user.fails(c.RenameCube(name="/n/a@v1", new_name="/n/b"), Errno.EINVAL)
