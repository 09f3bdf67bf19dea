"""Handlers that make, read and change cubes."""

import os
from collections.abc import Coroutine
from typing import Any

from libmem.abi import calls as c
from libmem.abi.digest import digest_of
from libmem.abi.errors import Errno, MemError
from libmem.abi.limits import PAYLOAD_MAX_BYTES, READ_MAX_BYTES
from libmem.abi.names import parse_ref
from libmem.abi.structs import Stat
from memosd.kernel.admission import Admission, Content
from memosd.kernel.dispatch import Context
from memosd.kernel.fills import Fill

__all__ = [
    "sys_abort_cube",
    "sys_create_cube",
    "sys_history_cube",
    "sys_read_cube",
    "sys_rename_cube",
    "sys_seal_cube",
    "sys_set_header",
    "sys_stat_cube",
    "sys_unlink_cube",
    "sys_write_cube",
]


def sys_write_cube(
    context: Context, draft: c.WriteCube
) -> c.WriteReply | Coroutine[Any, None, c.WriteReply]:
    kernel = context.kernel
    parameters = kernel.parts.parameters
    size_bytes = len(draft.payload)
    if size_bytes > parameters.call_by_value_bytes:
        raise MemError(
            Errno.EFBIG, "too large by value; use create_cube", need_bytes=size_bytes,
            free_bytes=parameters.call_by_value_bytes,
        )  # fmt: skip
    admission = kernel.cubes.admit(context.who, draft)
    admission.driver.check_payload(draft.payload, draft.descriptive, draft.attributes)
    is_inline = size_bytes <= parameters.inline_limit_bytes
    charge = kernel.cubes.charge_of(draft, size_bytes, is_inline=is_inline)
    try:
        kernel.cubes.check_room(admission, charge)
    except MemError as shortage:
        if shortage.errno not in (Errno.ENOSPC, Errno.EDQUOT) or admission.endings:
            raise
        return _write_into_room(context, draft, admission, charge)
    if not is_inline:
        return kernel.fills.write(context.who, draft, admission)
    prefix = kernel.cubes.prefix_of(admission, draft.payload, draft.attributes)
    content = Content(size_bytes, digest_of(draft.payload), draft.payload, charge, prefix)
    return kernel.cubes.commit(context.who, draft, admission, kernel.cubes.new_key(), content)


async def _write_into_room(
    context: Context, draft: c.WriteCube, admission: Admission, charge_bytes: int
) -> c.WriteReply:
    """A write that does not fit on disk, unless others give way."""
    await context.kernel.disk_space.make_room(admission, charge_bytes)
    reply = sys_write_cube(context, draft)
    return reply if isinstance(reply, c.WriteReply) else await reply


async def sys_create_cube(context: Context, draft: c.CreateCube) -> c.CreateReply:
    kernel = context.kernel
    if not 0 <= draft.size_bytes <= PAYLOAD_MAX_BYTES:
        raise MemError(Errno.EINVAL, f"size_bytes is within 0..{PAYLOAD_MAX_BYTES}")
    kernel.sessions.check_room(context.session, "fill")
    admission = kernel.cubes.admit(context.who, draft)
    is_inline = draft.size_bytes <= kernel.parts.parameters.inline_limit_bytes
    charge = kernel.cubes.charge_of(draft, draft.size_bytes, is_inline=is_inline)
    if await kernel.disk_space.make_room(admission, charge):
        admission = kernel.cubes.admit(context.who, draft)
    kernel.cubes.check_room(admission, charge)
    group = kernel.pager.control.group_of(admission.space, admission.name)
    frame = await kernel.pager.allocate(group, draft.size_bytes)
    fill = Fill(draft, group, frame, admission.sources)
    number = context.grant("fill", fill, lambda: kernel.pager.give_back(fill.group, frame))
    kernel.send_fds(context.session, number, [frame.fd])
    return c.CreateReply(handle=number, size_bytes=draft.size_bytes)


def sys_seal_cube(context: Context, request: c.SealCube) -> Coroutine[Any, None, c.WriteReply]:
    kernel = context.kernel
    fill = context.session.peek(request.handle, "fill").subject
    assert isinstance(fill, Fill)
    size_bytes = fill.frame.size_bytes if request.size_bytes is None else request.size_bytes
    if not 0 <= size_bytes <= fill.frame.size_bytes:
        raise MemError(Errno.EINVAL, "more bytes than were asked for in create_cube")
    # EBUSY leaves the handle with the client: it may unmap and try again.
    kernel.fills.freeze(fill, size_bytes)
    context.session.take(request.handle, "fill")
    return kernel.fills.commit(context.who, fill)


def sys_abort_cube(context: Context, request: c.AbortCube) -> c.Done:
    context.session.take(request.handle, "fill").release()
    return c.Done()


def sys_read_cube(
    context: Context, request: c.ReadCube
) -> c.ReadReply | Coroutine[Any, None, c.ReadReply]:
    kernel = context.kernel
    cube, _ = kernel.cubes.open(context.who, request.name)
    kernel.pager.check_quarantine(cube)
    if not request.allow_outdated:
        kernel.parts.lineage.check_outdated(cube)
    start, length = _span(request, cube.version.size_bytes)
    if not cube.version.is_inline and length:
        return _read_mapped(context, request, start, length)
    payload = kernel.pager.inline_payload(cube) if length else b""
    kernel.parts.heat.count_read(cube.id)
    return c.ReadReply(
        payload=payload if length == len(payload) else payload[start : start + length],
        version=cube.version.version,
        size_bytes=cube.version.size_bytes,
    )


def _span(request: c.ReadCube, size_bytes: int) -> tuple[int, int]:
    start, length = request.offset_bytes, request.length_bytes
    if start < 0 or (length is not None and length < 0):
        raise MemError(Errno.EINVAL, "a negative offset or length")
    left = max(0, size_bytes - start)
    wanted = left if length is None else min(length, left)
    if wanted > READ_MAX_BYTES:
        raise MemError(
            Errno.EFBIG, "too large by value; map it or read it in parts", need_bytes=wanted,
            free_bytes=READ_MAX_BYTES,
        )  # fmt: skip
    return start, wanted


async def _read_mapped(
    context: Context, request: c.ReadCube, start: int, length: int
) -> c.ReadReply:
    kernel = context.kernel
    cube, space = kernel.cubes.open(context.who, request.name)
    end = start + length
    if kernel.pager.can_read_past(cube, end) and kernel.pager.is_refused(cube, space):
        payload = (await kernel.pager.read_past(cube, end))[start:]
    else:
        resident = await kernel.pager.fault(cube, space)
        kernel.parts.residents.hold(resident, "busy")
        try:
            payload = await kernel.parts.memory_io.run(os.pread, resident.frame.fd, length, start)
        finally:
            kernel.reclaim.release(resident, "busy")
    kernel.parts.heat.count_read(cube.id)
    return c.ReadReply(
        payload=payload, version=cube.version.version, size_bytes=cube.version.size_bytes
    )


def sys_stat_cube(context: Context, request: c.StatCube) -> Stat:
    cube, _ = context.kernel.cubes.open(context.who, request.name)
    return context.describe(cube)


def sys_history_cube(context: Context, request: c.HistoryCube) -> c.HistoryReply:
    if not 1 <= request.limit <= 1000:
        raise MemError(Errno.EINVAL, "limit is within 1..1000")
    cube, _ = context.kernel.cubes.open(context.who, request.name)
    return c.HistoryReply(versions=tuple(context.history(cube, request.limit)))


def sys_rename_cube(context: Context, request: c.RenameCube) -> c.RenameReply:
    return context.kernel.removal.rename(context.who, request)


def sys_unlink_cube(
    context: Context, request: c.UnlinkCube
) -> c.UnlinkReply | Coroutine[Any, None, c.UnlinkReply]:
    kernel, who = context.kernel, context.who
    try:
        return kernel.removal.unlink(who, request)
    except MemError as error:
        ref = parse_ref(request.name)
        is_whole = not ref.version and request.expected_version is None
        if error.errno is not Errno.ECORRUPT or not is_whole or not who.is_admin:
            raise
    return kernel.salvage.unlink(who, ref.name)


def sys_set_header(
    context: Context, request: c.SetHeader
) -> c.WriteReply | Coroutine[Any, None, c.WriteReply]:
    return context.kernel.headers.replace(context.who, request)
