"""What must hold of a kernel, recomputed from its rows and frames.

`check_always` after any step, work under way or not; `check_at_rest` when nothing is under way,
so that every byte must have its owner. Both use nothing but rows, residents and handles: the
kernel's own sums are what is checked.
"""

from collections import Counter
from collections.abc import Iterator
from typing import Any

import msgspec

from libmem.abi.kv import KvHeader
from libmem.abi.structs import CubeType, Descriptive, StoredForm
from memosd.drivers.tiers.ram import RamFrame, RamTier
from memosd.kernel.fills import Fill
from memosd.kernel.kernel import Kernel
from memosd.kernel.ports import Tier
from memosd.kernel.rows import (
    CubeRow,
    PrefixRow,
    VersionRow,
    decode_page,
    decode_row,
    unseal_value,
)

__all__ = ["ROW_BYTES", "CountedRam", "check_always", "check_at_rest", "cubes_of", "usage_of"]

ROW_BYTES = 512
"""What a version's rows are charged; docs of `set_quota` promise it, so it is written out here."""


class CountedRam(RamTier):
    """The RAM tier, with every frame it ever made."""

    def __init__(self) -> None:
        super().__init__()
        self.made: list[RamFrame] = []

    def allocate(self, size_bytes: int) -> RamFrame:
        frame = super().allocate(size_bytes)
        self.made.append(frame)
        return frame

    def live(self) -> list[RamFrame]:
        """Frames whose memory is not given back."""
        self.made = [frame for frame in self.made if frame.fd >= 0]
        return self.made

    def close(self) -> None:
        """As the end of the process."""
        for frame in self.live():
            self.discard(frame)


def check_always(kernel: Kernel) -> None:
    """Budgets, quotas and the order of the policy."""
    parts = kernel.parts
    account = parts.residents.account
    for each in (account, parts.on_device.account):
        assert 0 <= each.used_bytes <= each.budget_bytes
        assert 0 <= each.used_frames <= each.budget_frames
    assert 0 <= parts.namespaces.used_bytes <= parts.namespaces.budget_bytes
    reserved = 0
    for space in parts.namespaces:
        quota = space.row.quota
        held = space.disk_bytes + space.reserved_bytes
        reserved += space.reserved_bytes
        assert space.disk_bytes >= 0
        assert space.reserved_bytes >= 0
        assert space.cubes >= 0
        assert not quota.disk_bytes or held <= quota.disk_bytes
        assert not quota.cubes or space.cubes <= quota.cubes
        assert not quota.ram_bytes or account.used_by(space.group) <= quota.ram_bytes
    booked = sum(space.disk_bytes for space in parts.namespaces)
    assert parts.namespaces.used_bytes == booked + reserved
    evictable = {r.key for r in parts.residents if not (r.is_held or r.is_orphan)}
    assert {each.key for each in parts.residents.victims(account.groups())} == evictable
    for resident in parts.residents:
        assert resident.frame.fd >= 0
        assert resident.frame.is_sealed


def check_at_rest(kernel: Kernel, ram: CountedRam, disk: Tier) -> None:
    """Nothing is under way: rows agree with each other, bytes with rows, frames with residents."""
    check_always(kernel)
    _check_frames(kernel, ram)
    _check_spaces(kernel)
    _check_folders(kernel)
    _check_rows(kernel)
    _check_prefixes(kernel)
    _check_page_files(kernel, disk)


def cubes_of(kernel: Kernel) -> Iterator[tuple[bytes, CubeRow, list[VersionRow]]]:
    """Every cube with all its versions, changes not yet durable included."""
    table = kernel.parts.table
    for cube_id, value in table.scan_cubes(b""):
        row = decode_row(CubeRow, "cubes", cube_id, value)
        yield cube_id, row, [*table.older_versions(cube_id), row.current]


def _header_bytes(version: VersionRow) -> int:
    header = (version.descriptive, version.attributes)
    parents_bytes = 24 * len(version.parents)
    if header == (Descriptive(), {}):
        return parents_bytes
    return parents_bytes + len(msgspec.msgpack.encode(header))


def usage_of(kernel: Kernel, namespace: int, folder: str = "/") -> tuple[int, int]:
    """(bytes, cubes) that a namespace's rows amount to, or those of a folder in it."""
    used_bytes = cubes = 0
    for _, row, versions in cubes_of(kernel):
        if row.namespace != namespace or not row.name.startswith(folder):
            continue
        cubes += 1
        used_bytes += sum(ROW_BYTES + _header_bytes(version) for version in versions)
        for version in {v.payload_id: v for v in versions}.values():
            size_bytes = version.size_bytes
            if not version.is_inline:
                form = _form_of(kernel, version.payload_id)
                size_bytes = kernel.parts.disk.charge_bytes(form.size_bytes if form else size_bytes)
            used_bytes += size_bytes
    return used_bytes, cubes


def _form_of(kernel: Kernel, key: bytes) -> StoredForm | None:
    return decode_page(key, kernel.parts.table.ledger.get("pages", key) or b"")[1]


def _check_frames(kernel: Kernel, ram: CountedRam) -> None:
    residents = list(kernel.parts.residents)
    assert set(ram.keys()) == {r.key for r in residents}, "one frame per resident"
    fills = [
        handle.subject
        for session in kernel.sessions
        for handle in session.handles.values()
        if isinstance(handle.subject, Fill)
    ]
    owned = [r.frame.fd for r in residents] + [fill.frame.fd for fill in fills]
    copies = list(kernel.parts.on_device)
    of_host = [copy.frame.fd for copy in copies if copy.frame.fd >= 0]
    assert sorted(owned + of_host) == sorted(f.fd for f in ram.live()), "every frame has one owner"
    assert kernel.parts.on_device.account.used_bytes == sum(copy.charged_bytes for copy in copies)
    charged: Counter[int] = Counter()
    for group, frame in [(r.group, r.frame) for r in residents] + [
        (fill.group, fill.frame) for fill in fills
    ]:
        for number in {each.number for each in group.lineage}:
            charged[number] += ram.charge_bytes(frame.size_bytes)
    account = kernel.parts.residents.account
    assert account.used_bytes == charged[0] == account.used_by(kernel.parts.namespaces.control.root)
    assert account.used_frames == len(owned)
    for space in kernel.parts.namespaces:
        assert account.used_by(space.group) == charged[space.id]


def _check_spaces(kernel: Kernel) -> None:
    for space in kernel.parts.namespaces:
        assert space.reserved_bytes == 0
        assert (space.disk_bytes, space.cubes) == usage_of(kernel, space.id), space.row.name


def _check_folders(kernel: Kernel) -> None:
    """Folders with limits hold what their cubes amount to, and nothing is charged elsewhere."""
    control, account = kernel.parts.namespaces.control, kernel.parts.residents.account
    for group in control.folders():
        assert (group.counted_to, group.reserved_bytes) == (None, 0)
        assert group.disk_bytes == usage_of(kernel, group.space, group.path + "/")[0], group.path
    for resident in kernel.parts.residents:
        row = kernel.parts.table.cube_row(resident.cube_id)
        if row is not None and not resident.is_orphan:
            space = kernel.parts.namespaces.by_id(row.namespace)
            assert resident.group.number == control.group_of(space, row.name).number, row.name
    for group in control.root.subtree():
        below = sum(account.used_by(child) for child in group.children.values())
        gone = sum(
            size
            for number, size in account.__dict__["_own"].items()
            if account.__dict__["_groups"][number].parent is group and number not in group.children
        )
        assert account.used_by(group) == account.own_by(group) + below + gone


def _keys(kernel: Kernel, table: str) -> set[bytes]:
    return {key for key, _ in kernel.parts.table.ledger.scan(table, b"")}


def _check_rows(kernel: Kernel) -> None:
    table = kernel.parts.table
    kernel.parts.heat.write_back()
    names: dict[bytes, bytes] = {}
    older: set[bytes] = set()
    inline: set[bytes] = set()
    paged: set[bytes] = set()
    expiry: set[bytes] = set()
    for cube_id, row, versions in cubes_of(kernel):
        names[row.name.encode()] = cube_id
        assert row.last_version >= max(version.version for version in versions)
        older |= {cube_id + v.version.to_bytes(4, "big") for v in versions[:-1]}
        inline |= {v.payload_id for v in versions if v.is_inline}
        paged |= {v.payload_id for v in versions if not v.is_inline}
        if row.expires_ns:
            expiry.add(row.expires_ns.to_bytes(8, "big") + cube_id)
    found = {
        key: unseal_value("names", key, value) for key, value in table.ledger.scan("names", b"")
    }
    assert found == names
    assert _keys(kernel, "history") == older
    assert _keys(kernel, "payloads") == inline
    assert _keys(kernel, "pages") == paged
    assert _keys(kernel, "expiry") == expiry
    assert _keys(kernel, "heat") <= set(names.values()), "observations of cubes that are gone"
    assert _keys(kernel, "quarantine") == table.quarantined
    assert table.quarantined <= inline | paged
    assert _keys(kernel, "volatile") == table.volatile.keys()
    assert table.volatile.keys() <= paged


def _check_prefixes(kernel: Kernel) -> None:
    """Every KV payload has its row, and what it stands on is there."""
    parts = kernel.parts
    owners = {
        version.payload_id: (cube_id, KvHeader(**_kv_fields(version)))
        for cube_id, row, versions in cubes_of(kernel)
        if row.type is CubeType.ACTIVATION
        for version in versions
    }
    rows = {
        key: decode_row(PrefixRow, "prefixes", key, value)
        for key, value in parts.table.ledger.scan("prefixes", b"")
    }
    assert rows.keys() == owners.keys(), "a row for each payload, and no other"
    assert len(parts.prefixes) == len(rows), "each is filed"
    for key, row in rows.items():
        cube_id, header = owners[key]
        assert row.cube_id == parts.prefixes.cube_of(key) == cube_id
        assert (row.model.hex(), row.start) == (header.model, header.start)
        assert row.start * 4 + len(row.tokens) == header.tokens * 4
        assert parts.prefixes.tokens_of(key) == header.tokens
        assert bool(row.base) == bool(row.start)
        if row.base:
            under = rows[row.base]
            assert under.model == row.model
            assert under.start + len(under.tokens) // 4 >= row.start


def _kv_fields(version: VersionRow) -> dict[str, Any]:
    fields: dict[str, Any] = version.attributes["kv"]
    return fields


def _check_page_files(kernel: Kernel, disk: Tier) -> None:
    table = kernel.parts.table
    files = set(disk.keys())
    pages = _keys(kernel, "pages")
    assert files <= pages, "page files that no row names"
    assert pages <= files | table.volatile.keys() | table.quarantined, "rows without a page file"
    for key in table.volatile:
        resident = kernel.parts.residents.find(key)
        is_dirty = resident is not None and resident.is_dirty
        assert is_dirty or key in files, "a cache payload that is nowhere"
