"""Handlers that look at many cubes: search, watch, fsck."""

from collections.abc import Coroutine
from itertools import islice
from typing import Any

import msgspec

from libmem.abi import calls as c
from libmem.abi.errors import Errno, MemError
from libmem.abi.kv import TOKEN_BYTES, fingerprint
from libmem.abi.names import NameRef, parse_subtree
from libmem.abi.structs import Finding
from memosd.kernel.dispatch import Context
from memosd.kernel.events import is_under
from memosd.kernel.pagetable import Cube
from memosd.kernel.recall import spaces_under
from memosd.kernel.rows import CubeRow, decode_row

__all__ = ["sys_find_prefix", "sys_fsck", "sys_search", "sys_watch"]


def sys_search(context: Context, request: c.Search) -> Coroutine[Any, None, c.SearchReply]:
    return context.kernel.recall.search(context.session, request)


def sys_find_prefix(context: Context, request: c.FindPrefix) -> c.PrefixReply:
    kernel = context.kernel
    under = parse_subtree(request.under)
    model = fingerprint(request.model)
    if len(request.tokens) % TOKEN_BYTES:
        raise MemError(Errno.EINVAL, "token ids are 4 bytes each")

    def may_show(cube_id: bytes) -> bool:
        row = kernel.cubes.readable_row(context.who, cube_id)
        return row is not None and is_under(row.name, under)

    prefixes = kernel.parts.prefixes
    match = prefixes.find(
        spaces_under(kernel.parts, context.who, under), model, request.tokens, may_show
    )
    if match is None:
        return c.PrefixReply()
    cube = prefixes.version_of(match.key)
    return c.PrefixReply(
        name=f"{cube.row.name}@v{cube.version.version}",
        tokens=match.tokens,
        cube_tokens=prefixes.tokens_of(match.key),
    )


def sys_watch(context: Context, request: c.Watch) -> Coroutine[Any, None, c.WatchReply]:
    return context.kernel.events.watch(context.session, request)


async def sys_fsck(context: Context, request: c.Fsck) -> c.FsckReply:
    if not 1 <= request.limit <= 1000:
        raise MemError(Errno.EINVAL, "limit is within 1..1000")
    try:
        start = bytes.fromhex(request.cursor)
    except ValueError:
        raise MemError(Errno.EINVAL, "not a cursor of fsck") from None
    ledger = context.kernel.parts.table.ledger
    rollbacks = ledger.rollbacks
    stretch = list(islice(context.kernel.parts.table.scan_cubes(start), request.limit))
    findings = [] if request.cursor else _damaged_namespaces(context)
    broken = [
        finding
        for cube_id, _ in stretch
        for finding in await _check(context, cube_id, repair=request.repair)
    ]
    findings += await _named(context, broken)
    if request.repair and ledger.rollbacks != rollbacks:
        raise MemError(Errno.EIO, "a commit failed meanwhile; what was put aside may not be")
    cursor = (stretch[-1][0] + b"\0").hex() if len(stretch) == request.limit else ""
    return c.FsckReply(checked=len(stretch), findings=tuple(findings), next_cursor=cursor)


async def _named(context: Context, findings: list[Finding]) -> list[Finding]:
    """A damaged cube does not say what it is called; who is to unlink it must know."""
    unnamed = {found.id for found in findings if not found.name}
    names = await context.kernel.salvage.names_of(unnamed) if unnamed else {}
    return [
        msgspec.structs.replace(found, name=found.name or names.get(found.id, ""))
        for found in findings
    ]


def _damaged_namespaces(context: Context) -> list[Finding]:
    return [
        Finding("", number.to_bytes(4, "big"), 0, f"the row of namespace {number} is damaged")
        for number in sorted(context.kernel.parts.namespaces.damaged)
    ]


async def _check(context: Context, cube_id: bytes, *, repair: bool) -> list[Finding]:
    table = context.kernel.parts.table
    value = table.ledger.get("cubes", cube_id)  # as it is by now, after others were read
    if value is None:
        return []
    name = ""
    try:
        row = decode_row(CubeRow, "cubes", cube_id, value)
        name = row.name
        cube = Cube(cube_id, row, row.current)
        versions = [*table.older_versions(cube_id), row.current]
        if table.find_id(row.name) != cube_id:
            return [_finding(cube, "its name leads elsewhere")]
    except MemError as error:
        return [Finding(name, cube_id, 0, str(error), "its reads fail with ECORRUPT")]
    findings = []
    for payload in {v.payload_id: cube._replace(version=v) for v in versions}.values():
        problem = await _payload_problem(context, payload)
        if problem is None or not _is_still_there(context, payload):
            continue
        action = ""
        if repair:
            context.kernel.pager.quarantine(payload, problem)
            action = "quarantined"
        findings.append(_finding(payload, str(problem), action))
    return findings


async def _payload_problem(context: Context, cube: Cube) -> MemError | None:
    """What is wrong with a payload as it lies on disk."""
    parts, version = context.kernel.parts, cube.version
    try:
        if cube.key in parts.table.quarantined:
            return MemError(Errno.ECORRUPT, "quarantined")
        driver = parts.drivers.get(cube.row.type)
        if driver is not None and driver.prefixes is not None:
            parts.prefixes.verify(cube.key)
        if version.is_inline and version.size_bytes:
            parts.table.payload(version)
        elif version.size_bytes and cube.key not in parts.table.volatile:
            await parts.pages.verify(version)
    except MemError as error:
        return error
    return None


def _is_still_there(context: Context, cube: Cube) -> bool:
    """Not unlinked while its payload was read."""
    try:
        context.kernel.parts.table.resolve(NameRef(cube.row.name, cube.version.version))
    except MemError:
        return False
    return True


def _finding(cube: Cube, problem: str, action: str = "") -> Finding:
    return Finding(cube.row.name, cube.id, cube.version.version, problem, action)
