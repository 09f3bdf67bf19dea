"""Handlers about where payloads are: mapping, pinning, hints, eviction, migration, explanation."""

from libmem.abi import calls as c
from libmem.abi.errors import Errno, MemError
from libmem.abi.structs import Advice, TierName
from memosd.kernel.access import WRITE, allows
from memosd.kernel.dispatch import Context
from memosd.kernel.namespace import Namespace
from memosd.kernel.pagetable import Cube
from memosd.kernel.residents import Resident
from memosd.kernel.wait import detach

__all__ = [
    "sys_advise_cube",
    "sys_evict",
    "sys_explain",
    "sys_migrate_cube",
    "sys_mmap_cube",
    "sys_munmap_cube",
    "sys_pin_cube",
    "sys_unpin_cube",
]


async def _held(context: Context, name: str, kind: str) -> tuple[Cube, Resident, int]:
    """Fault a cube in and hold it on the session's behalf: cube, resident, handle."""
    kernel = context.kernel
    kernel.sessions.check_room(context.session, kind)
    while True:
        cube, space = kernel.cubes.open(context.who, name)
        resident = await kernel.pager.fault(cube, space)
        # The fault may have waited: what is handed out is what the name means by now.
        if kernel.cubes.open(context.who, name)[0].key == cube.key:
            break
    kernel.parts.residents.hold(resident, f"{kind}s")
    number = context.grant(kind, resident, lambda: kernel.reclaim.release(resident, f"{kind}s"))
    return cube, resident, number


async def sys_mmap_cube(context: Context, request: c.MmapCube) -> c.MapReply:
    kernel = context.kernel
    cube, _ = kernel.cubes.open(context.who, request.name)
    if cube.version.size_bytes == 0:
        raise MemError(Errno.EINVAL, "an empty payload cannot be mapped", cube=request.name)
    cube, resident, number = await _held(context, request.name, "map")
    kernel.send_fd(context.session, number, resident.frame.fd)
    kernel.parts.heat.count_map(cube.id)
    return c.MapReply(
        handle=number,
        id=cube.id,
        version=cube.version.version,
        size_bytes=cube.version.size_bytes,
        type=cube.row.type,
        attributes=cube.version.attributes,
    )


def sys_munmap_cube(context: Context, request: c.MunmapCube) -> c.Done:
    context.session.take(request.handle, "map").release()
    return c.Done()


async def sys_pin_cube(context: Context, request: c.PinCube) -> c.PinReply:
    _, _, number = await _held(context, request.name, "pin")
    return c.PinReply(handle=number)


def sys_unpin_cube(context: Context, request: c.UnpinCube) -> c.Done:
    context.session.take(request.handle, "pin").release()
    return c.Done()


def sys_advise_cube(context: Context, request: c.AdviseCube) -> c.Done:
    kernel = context.kernel
    cube, space = kernel.cubes.open(context.who, request.name)
    resident = kernel.parts.residents.find(cube.key)
    if request.advice is Advice.WILLNEED:
        if resident is None:
            detach(_prefetch(context, cube, space))
    elif resident is not None:
        resident.is_sequential = request.advice is Advice.SEQUENTIAL
        if request.advice is not Advice.SEQUENTIAL:
            kernel.parts.residents.policy.demote(cube.key)
        if request.advice is Advice.DONTNEED and _may_evict(context, cube, resident):
            kernel.reclaim.evict(resident, "advised: dontneed")
    return c.Done()


def _may_evict(context: Context, cube: Cube, resident: Resident) -> bool:
    """Now, by this caller: who may only read does not take it from the others' reach."""
    row = cube.row
    may_write = allows(context.who, (row.uid, row.gid), row.mode, WRITE)
    return may_write and not resident.is_held and not resident.is_dirty


async def _prefetch(context: Context, cube: Cube, space: Namespace) -> None:
    try:
        await context.kernel.pager.fault(cube, space)
    except MemError as error:
        # A hint fails without a word to the caller, but `explain` tells.
        context.kernel.parts.heat.decide(cube.id, "prefetch failed", str(error))


async def sys_evict(context: Context, request: c.Evict) -> c.EvictReply:
    cube, _ = context.kernel.cubes.open(context.who, request.name, WRITE)
    return c.EvictReply(freed_bytes=await _evict(context, cube, "asked for"))


async def _evict(context: Context, cube: Cube, reason: str) -> int:
    kernel = context.kernel
    resident = kernel.parts.residents.find(cube.key)
    if resident is None:
        return 0
    if resident.pins or resident.maps:
        raise MemError(
            Errno.EBUSY, "pinned or mapped", cube=cube.row.name, pins=resident.pins,
            maps=resident.maps,
        )  # fmt: skip
    await kernel.reclaim.write_back(resident)
    if kernel.parts.residents.find(cube.key) is not resident:
        return 0  # reclaimed while it was written back
    if resident.is_held:
        raise MemError(Errno.EBUSY, "came into use while it was written back", cube=cube.row.name)
    return kernel.reclaim.evict(resident, reason)


async def sys_migrate_cube(context: Context, request: c.MigrateCube) -> c.MigrateReply:
    kernel = context.kernel
    cube, space = kernel.cubes.open(context.who, request.name, WRITE)
    if request.tier is TierName.RAM:
        if cube.version.size_bytes == 0:
            raise MemError(Errno.EOPNOTSUPP, "an empty payload lies in the table only")
        await kernel.pager.fault(cube, space)
    else:
        await _evict(context, cube, "migrated to disk")
    cube, _ = kernel.cubes.open(context.who, request.name, WRITE)
    kernel.parts.heat.decide(cube.id, "migrate", f"asked for, to {request.tier}")
    return c.MigrateReply(tiers=context.describe(cube).tiers)


def sys_explain(context: Context, request: c.Explain) -> c.ExplainReply:
    kernel = context.kernel
    cube, _ = kernel.cubes.open(context.who, request.name)
    resident = kernel.parts.residents.find(cube.key)
    return c.ExplainReply(
        stat=context.describe(cube),
        residency=_residency(cube, resident),
        decisions=kernel.parts.heat.row(cube.id).decisions,
    )


def _residency(cube: Cube, resident: Resident | None) -> str:
    """One line for people."""
    if resident is None:
        place = "in the table" if cube.version.is_inline else "in a page file"
        return f"on disk, {place}; the next map or pin reads and verifies it"
    state = "dirty, to be written back" if resident.is_dirty else "clean, also on disk"
    if resident.pins or resident.maps:
        return f"in RAM ({state}); held by {resident.pins} pins and {resident.maps} mappings"
    return f"in RAM ({state}); evictable, priority {resident.priority}"
