"""What is a name and what is none, a line break at the end above all."""

from collections.abc import Callable

import pytest

from libmem.abi.errors import Errno, MemError
from libmem.abi.names import (
    NameRef,
    parse_name,
    parse_namespace,
    parse_ref,
    parse_subtree,
)


@pytest.mark.parametrize(
    ("ref", "parsed"),
    [
        ("/n/a", NameRef("/n/a", 0)),
        ("/n/a@v1", NameRef("/n/a", 1)),
        ("/n/a@b@v9999999999", NameRef("/n/a@b", 9_999_999_999)),
        ("/n/a@v0", NameRef("/n/a@v0", 0)),
        ("/n/größer", NameRef("/n/größer", 0)),
    ],
)
def test_a_reference_is_a_name_and_a_version(ref: str, parsed: NameRef) -> None:
    assert parse_ref(ref) == parsed


@pytest.mark.parametrize("parse", [parse_name, parse_ref])
@pytest.mark.parametrize("name", ["/n/a\n", "/n/a@v1\n", "/n/a\n@v1", "/n/a@b\n", "/n/.\n"])
def test_a_line_break_is_no_part_of_a_name(parse: Callable[[str], object], name: str) -> None:
    with pytest.raises(MemError, match="control or unprintable") as raised:
        parse(name)
    assert raised.value.errno is Errno.EINVAL


@pytest.mark.parametrize("parse", [parse_namespace, parse_subtree])
def test_nor_of_a_namespace_or_folder(parse: Callable[[str], object]) -> None:
    with pytest.raises(MemError) as raised:
        parse("/n\n")
    assert raised.value.errno is Errno.EINVAL
