"""How rows look to callers: `Stat` and its kin. Pure look-ups."""

from collections.abc import Callable

from libmem.abi.errors import MemError
from libmem.abi.structs import Stat, TierName
from memosd.kernel.governance import governance_of
from memosd.kernel.pagetable import Cube
from memosd.kernel.parts import Parts
from memosd.kernel.ports import PayloadKey
from memosd.kernel.rows import CubeRow

__all__ = ["describe", "places"]


def describe(parts: Parts, cube: Cube, may_read: Callable[[CubeRow], bool]) -> Stat:
    """Everything about one version; parents that the caller may not read by their ids only."""
    row, version = cube.row, cube.version
    resident = parts.residents.find(cube.key)
    on_device = parts.on_device.find(cube.key)
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
        governance_of(row),
        parts.heat.behaviour(cube.id),
        row.durability,
        places(parts, cube.key),
        parents=tuple(_parent_name(parts, parent, may_read) for parent in version.parents),
        attributes=version.attributes,
        pins=resident.pins if resident else 0,
        maps=sum(each.maps for each in (resident, on_device) if each),
        is_quarantined=cube.key in parts.table.quarantined,
        outdated=parts.table.outdated.get(cube.key, ""),
        stored=None if version.is_inline else parts.table.stored_form(cube.key),
    )


def places(parts: Parts, key: PayloadKey) -> tuple[str, ...]:
    """The tiers that hold a payload, fastest first."""
    on_device = (TierName.DEVICE,) if parts.on_device.find(key) else ()
    in_ram = (TierName.RAM,) if parts.residents.find(key) else ()
    on_disk = () if key in parts.table.volatile else (TierName.DISK,)
    return (*on_device, *in_ram, *on_disk)


def _parent_name(
    parts: Parts, parent: tuple[bytes, int], may_read: Callable[[CubeRow], bool]
) -> str:
    cube_id, version = parent
    try:
        row = parts.table.cube_row(cube_id)
        shown = row.name if row is not None and may_read(row) else cube_id.hex()
    except MemError:
        shown = cube_id.hex()
    return f"{shown}@v{version}"
