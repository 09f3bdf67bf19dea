"""Handlers about where payloads are: mapping, pinning, eviction, migration."""

from collections.abc import Callable, Coroutine
from typing import Any, NamedTuple

from libmem.abi import calls as c
from libmem.abi.errors import Errno, MemError
from libmem.abi.structs import CubeType, TierName
from memosd.kernel.access import WRITE
from memosd.kernel.device import DeviceFrame
from memosd.kernel.dispatch import Context
from memosd.kernel.holdings import Holding
from memosd.kernel.namespace import Namespace
from memosd.kernel.pagetable import Cube
from memosd.kernel.residents import Resident

__all__ = [
    "sys_evict",
    "sys_migrate_cube",
    "sys_mmap_cube",
    "sys_munmap_cube",
    "sys_pin_cube",
    "sys_unpin_cube",
]


class _Held(NamedTuple):
    """A cube in RAM, held on a session's behalf."""

    cube: Cube
    parts: list[tuple[Cube, Resident]]
    """The cube itself, then what it stands on, nearest first."""
    handle: int


class _Tier(NamedTuple):
    """Where a cube is to be held."""

    fault: Callable[[Cube, Namespace], Coroutine[Any, None, Resident]]
    hold: Callable[[Resident, str], None]
    release: Callable[[Resident, str], None]


def _tier(context: Context, name: TierName) -> _Tier:
    kernel = context.kernel
    if name is TierName.DEVICE:
        return _Tier(kernel.device.fault, kernel.device.hold, kernel.device.release)
    return _Tier(kernel.pager.fault, kernel.parts.residents.hold, kernel.reclaim.release)


class _Wish(NamedTuple):
    """How a cube is to be held."""

    kind: str
    """map or pin."""
    is_whole: bool
    """With what it stands on."""
    tier: TierName = TierName.RAM


async def _held(context: Context, name: str, wish: _Wish, check: Callable[[Cube], None]) -> _Held:
    """Fault a cube in and hold it. `check`: may it be handed out?"""
    kernel, kind = context.kernel, wish.kind
    tier = _tier(context, wish.tier)
    kernel.sessions.check_room(context.session, kind)
    parts: list[tuple[Cube, Resident]] = []
    holding: Holding | None = None

    def release() -> None:
        if holding is not None:
            kernel.holdings.drop(holding)
        while parts:
            tier.release(parts.pop()[1], f"{kind}s")

    try:
        while True:
            cube, _ = kernel.cubes.open(context.who, name)
            check(cube)
            if kind == "pin":
                charge_bytes = kernel.parts.ram.charge_bytes(cube.version.size_bytes)
                kernel.holdings.check_pin(context.session, cube.key, charge_bytes)
            await _hold(context, tier, cube, kind, parts)
            if wish.is_whole and cube.row.type is CubeType.ACTIVATION:
                await _hold_bases(context, tier, cube, kind, parts)
            # The faults may have waited: what is handed out is what the name means by now.
            if kernel.cubes.open(context.who, name)[0].key == cube.key:
                break
            release()
        holding = Holding(context.session, kind, cube.id)
        kernel.holdings.add(holding, tuple(resident for _, resident in parts))
    except BaseException:
        release()
        raise
    held = list(parts)
    holding.handle = context.grant(kind, held[0][1], release)
    return _Held(cube, held, holding.handle)


async def _hold(
    context: Context, tier: _Tier, cube: Cube, kind: str, parts: list[tuple[Cube, Resident]]
) -> None:
    space = context.kernel.parts.namespaces.by_id(cube.row.namespace)
    resident = await tier.fault(cube, space)
    tier.hold(resident, f"{kind}s")
    parts.append((cube, resident))


async def _hold_bases(
    context: Context, tier: _Tier, cube: Cube, kind: str, parts: list[tuple[Cube, Resident]]
) -> None:
    """What a cube stands on. Errors: as a fault, without the names of cubes that the caller may
    not be allowed to see."""
    try:
        for base in context.kernel.parts.prefixes.bases(cube.key):
            await _hold(context, tier, base, kind, parts)
    except MemError as error:
        detail = {**error.detail, "cube": cube.row.name, "version": cube.version.version}
        raise MemError(error.errno, f"a part of it: {error.message}", **detail) from None


async def sys_mmap_cube(context: Context, request: c.MmapCube) -> c.MapReply:
    kernel = context.kernel

    def check(cube: Cube) -> None:
        if cube.version.size_bytes == 0:
            raise MemError(Errno.EINVAL, "an empty payload cannot be mapped", cube=request.name)
        _check_model(context, cube, request.model)
        if not request.allow_outdated:
            kernel.parts.lineage.check_outdated(cube)
        if request.tier is TierName.DISK:
            raise MemError(Errno.EINVAL, "what lies on disk cannot be mapped there")

    wish = _Wish("map", request.is_whole, request.tier)
    held = await _held(context, request.name, wish, check)
    cube = held.cube
    frames = [part.frame for _, part in held.parts]
    openings = tuple(frame.opening for frame in frames if isinstance(frame, DeviceFrame))
    if not openings:
        kernel.send_fds(context.session, held.handle, [frame.fd for frame in frames])
    kernel.parts.heat.count_map(cube.id)
    return c.MapReply(
        handle=held.handle,
        id=cube.id,
        version=cube.version.version,
        size_bytes=cube.version.size_bytes,
        type=cube.row.type,
        attributes=cube.version.attributes,
        bases=tuple(
            c.MapPart(
                base.id, base.version.version, base.version.size_bytes, _described(context, base)
            )
            for base, _ in held.parts[1:]
        ),
        device=kernel.device.name if request.tier is TierName.DEVICE else "",
        openings=openings,
    )


def _described(context: Context, base: Cube) -> dict[str, Any]:
    """What its payload is. Other attributes are for those who may read that cube."""
    fixed = context.kernel.parts.drivers[base.row.type].fixed_attributes
    return {name: it for name, it in base.version.attributes.items() if name in fixed}


def _check_model(context: Context, cube: Cube, model: str) -> None:
    """Is it of the model that the caller will use it with? Errors: EMODEL, EOPNOTSUPP."""
    if not model:
        return
    driver = context.kernel.parts.drivers.get(cube.row.type)
    wanted = driver.model_of(cube.version.attributes) if driver is not None else ""
    if not wanted:
        raise MemError(Errno.EOPNOTSUPP, f"a {cube.row.type} cube belongs to no model")
    if wanted != model:
        raise MemError(Errno.EMODEL, "of another model", cube=cube.row.name, model=wanted)


def _check_nothing(_cube: Cube) -> None:
    """Whatever it is may be pinned."""


def sys_munmap_cube(context: Context, request: c.MunmapCube) -> c.Done:
    context.session.take(request.handle, "map").release()
    return c.Done()


async def sys_pin_cube(context: Context, request: c.PinCube) -> c.PinReply:
    held = await _held(context, request.name, _Wish("pin", is_whole=True), _check_nothing)
    return c.PinReply(handle=held.handle)


def sys_unpin_cube(context: Context, request: c.UnpinCube) -> c.Done:
    context.session.take(request.handle, "pin").release()
    return c.Done()


async def _bring_in(context: Context, cube: Cube, space: Namespace) -> None:
    """Fault a cube in, with what it stands on."""
    kernel = context.kernel
    await kernel.pager.fault(cube, space)
    if cube.row.type is CubeType.ACTIVATION:
        for base in kernel.parts.prefixes.bases(cube.key):
            await kernel.pager.fault(base, kernel.parts.namespaces.by_id(base.row.namespace))


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
    await kernel.reclaim.writeback.store(resident)
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
        await _bring_in(context, cube, space)
    elif request.tier is TierName.DEVICE:
        await kernel.device.fault(cube, space)
    else:
        await _evict(context, cube, "migrated to disk")
    if request.tier is not TierName.DEVICE:
        _take_from_device(context, cube, f"migrated to {request.tier}")
    cube, _ = kernel.cubes.open(context.who, request.name, WRITE)
    kernel.parts.heat.decide(cube.id, "migrate", f"asked for, to {request.tier}")
    return c.MigrateReply(tiers=context.describe(cube).tiers)


def _take_from_device(context: Context, cube: Cube, reason: str) -> None:
    """Errors: EBUSY."""
    device = context.kernel.device
    resident = device.residents.find(cube.key)
    if resident is None:
        return
    if resident.is_held:
        raise MemError(Errno.EBUSY, "mapped on the device", cube=cube.row.name, maps=resident.maps)
    device.evict(resident, reason)
