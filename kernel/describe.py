"""How rows look to callers: `Stat` and its kin. Pure look-ups."""

from collections.abc import Iterator

from libmem.abi.errors import MemError
from libmem.abi.structs import Governance, Stat, TierName
from memosd.kernel.pagetable import Cube
from memosd.kernel.parts import Parts

__all__ = ["describe", "history"]


def describe(parts: Parts, cube: Cube) -> Stat:
    """Everything about one version."""
    row, version = cube.row, cube.version
    resident = parts.residents.find(cube.key)
    return Stat(
        row.name,
        cube.id,
        row.type,
        version.version,
        row.current.version,
        version.size_bytes,
        version.digest,
        row.created_ns,
        version.created_ns,
        version.descriptive,
        Governance(row.mode, row.uid, row.gid, row.expires_ns, row.priority, row.sensitivity),
        parts.heat.behaviour(cube.id),
        row.durability,
        _tiers(parts, cube, is_resident=resident is not None),
        parents=tuple(_parent_name(parts, *parent) for parent in version.parents),
        attributes=version.attributes,
        pins=resident.pins if resident else 0,
        maps=resident.maps if resident else 0,
        is_quarantined=cube.key in parts.table.quarantined,
    )


def _tiers(parts: Parts, cube: Cube, *, is_resident: bool) -> tuple[str, ...]:
    in_ram = (TierName.RAM,) if is_resident else ()
    on_disk = () if cube.key in parts.table.volatile else (TierName.DISK,)
    return (*in_ram, *on_disk)


def _parent_name(parts: Parts, cube_id: bytes, version: int) -> str:
    """Its name now; its id where it is gone or unreadable."""
    try:
        row = parts.table.cube_row(cube_id)
    except MemError:
        row = None
    return f"{row.name if row else cube_id.hex()}@v{version}"


def history(parts: Parts, cube: Cube, limit: int) -> Iterator[Stat]:
    """Newest first, the current version included."""
    versions = [*parts.table.older_versions(cube.id), cube.row.current]
    for version in versions[: -limit - 1 : -1]:
        yield describe(parts, cube._replace(version=version))
