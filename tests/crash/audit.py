"""A look at a stopped daemon's data from the outside: does every row agree with every other?

Reads the table with LMDB and the page files with the disk tier, by the format alone; the kernel's
own code takes no part in it, save the decoders of rows.
"""

from collections import Counter, defaultdict
from pathlib import Path
from typing import TypeVar

import lmdb

from libmem.abi.digest import digest_of
from libmem.abi.structs import CubeType, Descriptive, StoredForm
from libmem.abi.wire import encode
from memosd.drivers.tiers.disk import DiskTier
from memosd.drivers.tiers.pagefile import file_bytes
from memosd.kernel.rows import (
    TABLES,
    CubeRow,
    LogRow,
    NamespaceRow,
    PrefixRow,
    Row,
    VersionRow,
    decode_page,
    decode_row,
    unseal_value,
)

__all__ = ["audit", "open_table"]

RowT = TypeVar("RowT", bound=Row)
_ROW_BYTES = 512
_PARENT_BYTES = 24
_PLAIN_HEADER = encode((Descriptive(), {}))


def open_table(data_dir: Path) -> lmdb.Environment:
    """The table of a stopped daemon, writable."""
    return lmdb.open(
        str(data_dir / "table.mdb"),
        subdir=False,
        lock=False,
        max_dbs=len(TABLES),
        map_size=1 << 30,
    )


class _Tables:
    """All rows of a table file."""

    def __init__(self, data_dir: Path) -> None:
        self.raw: dict[str, dict[bytes, bytes]] = {}
        with open_table(data_dir) as env:
            for table in TABLES:
                database = env.open_db(table.encode())
                with env.begin() as transaction:
                    self.raw[table] = dict(transaction.cursor(database))

    def rows(self, table: str, kind: type[RowT]) -> dict[bytes, RowT]:
        return {key: decode_row(kind, table, key, value) for key, value in self.raw[table].items()}

    def sealed(self, table: str) -> dict[bytes, bytes]:
        return {key: unseal_value(table, key, value) for key, value in self.raw[table].items()}

    def pages(self) -> dict[bytes, tuple[bytes, StoredForm | None]]:
        """Cube id and form of every page file."""
        return {key: decode_page(key, value) for key, value in self.raw["pages"].items()}


def audit(data_dir: Path) -> None:
    """Raise where something does not agree."""
    tables = _Tables(data_dir)
    cubes = tables.rows("cubes", CubeRow)
    versions = _versions(tables, cubes)
    _check_names(tables, cubes)
    _check_payloads(tables, versions)
    _check_prefixes(tables, cubes, versions)
    _check_page_files(tables, versions, data_dir)
    _check_usage(tables, cubes, versions)
    _check_log(tables)


def _versions(tables: _Tables, cubes: dict[bytes, CubeRow]) -> dict[bytes, list[VersionRow]]:
    """All versions of each cube."""
    versions = {cube_id: [row.current] for cube_id, row in cubes.items()}
    for key, version in tables.rows("history", VersionRow).items():
        assert key[:16] in cubes, "a version without its cube"
        versions[key[:16]].append(version)
    for cube_id, found in versions.items():
        numbers = [version.version for version in found]
        assert len(set(numbers)) == len(numbers), "a version twice"
        assert max(numbers) == cubes[cube_id].current.version <= cubes[cube_id].last_version
    return versions


def _check_names(tables: _Tables, cubes: dict[bytes, CubeRow]) -> None:
    names = tables.sealed("names")
    assert {name: cube_id.hex() for name, cube_id in names.items()} == {
        row.name.encode(): cube_id.hex() for cube_id, row in cubes.items()
    }
    expiries = {
        row.expires_ns.to_bytes(8, "big") + cube_id
        for cube_id, row in cubes.items()
        if row.expires_ns
    }
    assert set(tables.raw["expiry"]) == expiries
    assert set(tables.raw["heat"]) <= set(cubes)


def _check_payloads(tables: _Tables, versions: dict[bytes, list[VersionRow]]) -> None:
    inline = {
        version.payload_id: version.digest
        for found in versions.values()
        for version in found
        if version.is_inline
    }
    assert {key: digest_of(value) for key, value in tables.raw["payloads"].items()} == inline


def _check_prefixes(
    tables: _Tables, cubes: dict[bytes, CubeRow], versions: dict[bytes, list[VersionRow]]
) -> None:
    """A row for each KV payload, and under each part a base that is long enough."""
    owners = {
        version.payload_id: (cube_id, version.attributes["kv"])
        for cube_id, found in versions.items()
        if cubes[cube_id].type is CubeType.ACTIVATION
        for version in found
    }
    rows = tables.rows("prefixes", PrefixRow)
    assert rows.keys() == owners.keys()
    for key, row in rows.items():
        cube_id, header = owners[key]
        assert (row.cube_id, row.model.hex()) == (cube_id, header["model"])
        assert row.start == header.get("start", 0)
        assert len(row.tokens) == 4 * (header["tokens"] - row.start)
        assert bool(row.base) == bool(row.start)
        if row.base:
            under = rows[row.base]
            assert under.model == row.model
            assert under.start + len(under.tokens) // 4 >= row.start


def _check_page_files(
    tables: _Tables, versions: dict[bytes, list[VersionRow]], data_dir: Path
) -> None:
    owners = {
        version.payload_id: (cube_id, version)
        for cube_id, found in versions.items()
        for version in found
        if not version.is_inline
    }
    pages = tables.pages()
    assert {key: owner for key, (owner, _) in pages.items()} == {
        key: owner for key, (owner, _) in owners.items()
    }
    assert tables.raw["volatile"] == {}, "all was written back at the end"
    files = {path.name for path in data_dir.glob("pages/*/*")}
    assert files == {f"{key.hex()}.page" for key in owners}
    disk = DiskTier(data_dir)
    for key, (_, version) in owners.items():
        stored = pages[key][1] or version
        disk.verify(key, stored.size_bytes, stored.digest)


def _check_usage(
    tables: _Tables, cubes: dict[bytes, CubeRow], versions: dict[bytes, list[VersionRow]]
) -> None:
    counts: Counter[int] = Counter(row.namespace for row in cubes.values())
    used: defaultdict[int, int] = defaultdict(int)
    for cube_id, row in cubes.items():
        payloads = {version.payload_id: version for version in versions[cube_id]}
        used[row.namespace] += sum(
            _payload_charge(version, tables.pages().get(key)) for key, version in payloads.items()
        )
        used[row.namespace] += sum(_row_charge(version) for version in versions[cube_id])
    for key, space in tables.rows("namespaces", NamespaceRow).items():
        number = int.from_bytes(key, "big")
        assert (space.usage.cubes, space.usage.disk_bytes) == (counts[number], used[number])


def _payload_charge(version: VersionRow, page: tuple[bytes, StoredForm | None] | None) -> int:
    if version.is_inline:
        return version.size_bytes
    assert page is not None
    return file_bytes((page[1] or version).size_bytes)


def _row_charge(version: VersionRow) -> int:
    header = encode((version.descriptive, version.attributes))
    parents_bytes = _PARENT_BYTES * len(version.parents)
    return _ROW_BYTES + parents_bytes + (0 if header == _PLAIN_HEADER else len(header))


def _check_log(tables: _Tables) -> None:
    numbers: list[int] = []
    for key, row in tables.rows("log", LogRow).items():
        last, first = int.from_bytes(key[:8], "big"), int.from_bytes(key[8:], "big")
        numbers += range(first, last + 1)
        assert len(row.events) == last - first + 1, "a row does not hold what its key says"
    assert numbers == list(range(numbers[0], numbers[0] + len(numbers))), "an event is missing"
