"""The cube commands: ls, stat, history, mv, rm.

Names in, table rows out; payloads are in payload.py. Each command is one syscall per name or page.
"""

import pwd
from collections.abc import Iterator
from typing import Annotated, Final

import typer

from libmem.abi.calls import HistoryCube, Readdir, RenameCube, StatCube, UnlinkCube
from libmem.abi.errors import Errno, MemError
from libmem.abi.kv import KV_ATTRIBUTE
from libmem.abi.limits import READDIR_MAX
from libmem.abi.lineage import Receipt
from libmem.abi.structs import Descriptive, NamespaceStat, Stat, StoredForm, Value
from memosd.tools.memctl.command import Session, command
from memosd.tools.memctl.completion import complete_cube
from memosd.tools.memctl.kv import kv_facts
from memosd.tools.memctl.output import Column, plain
from memosd.tools.memctl.units import (
    counted,
    human_bytes,
    local_time,
    mode_text,
    printable,
    seconds_text,
)

__all__ = ["ExpectVersion", "Name", "app", "fallen_text", "owner"]

app: Final = typer.Typer(rich_help_panel="Cubes")

Name = Annotated[
    str,
    typer.Argument(
        metavar="NAME",
        help="A cube: /namespace/path; /namespace/path@v3 is an old version.",
        autocompletion=complete_cube,
        show_default=False,
    ),
]
ExpectVersion = Annotated[
    int | None,
    typer.Option(
        "--expect-version",
        help="Fail with EVERSION unless this is the current version; 0: nothing may be there.",
        metavar="N",
        min=0,
        show_default=False,
    ),
]
Folder = Annotated[
    str, typer.Argument(metavar="[PATH]", help="Where to list.", autocompletion=complete_cube)
]
IsLong = Annotated[bool, typer.Option("--long", "-l", help="Mode, version, size, tiers, time.")]
IsRecursive = Annotated[bool, typer.Option("--recursive", "-R", help="Everything below as well.")]


class Folded(Value, frozen=True):
    """A folder in a listing; it exists only as a part of cubes' names."""

    name: str
    kind: str = "folder"


Entry = Stat | NamespaceStat | Folded


def owner(uid: int) -> str:
    """The user's name, or the number where this machine knows none."""
    try:
        return pwd.getpwuid(uid).pw_name
    except (KeyError, OverflowError):
        return str(uid)


def _mode(entry: Entry) -> str:
    match entry:
        case Stat():
            return ("!" if entry.is_quarantined else "-") + mode_text(entry.governance.mode)
        case NamespaceStat():
            return "n" + mode_text(entry.mode)
    return "d---------"


def _owner(entry: Entry) -> str:
    match entry:
        case Stat():
            return owner(entry.governance.owner_uid)
        case NamespaceStat():
            return owner(entry.owner_uid)
    return "-"


def _version(entry: Entry) -> str:
    return f"v{entry.version}" if isinstance(entry, Stat) else "-"


def _size(entry: Entry) -> str:
    match entry:
        case Stat():
            return human_bytes(entry.size_bytes)
        case NamespaceStat():
            return human_bytes(entry.usage.disk_bytes)
    return "-"


def _type(entry: Entry) -> str:
    match entry:
        case Stat():
            return str(entry.type)
        case NamespaceStat():
            return counted(entry.usage.cubes, "cube")
    return "-"


def _tiers(entry: Entry) -> str:
    return ",".join(entry.tiers) or "-" if isinstance(entry, Stat) else "-"


def _time(entry: Entry) -> str:
    match entry:
        case Stat():
            return local_time(entry.modified_ns)
        case NamespaceStat():
            return local_time(entry.created_ns)
    return "-"


def _shown_name(entry: Entry) -> str:
    return entry.name if isinstance(entry, Stat) else f"{entry.name}/"


_LONG: Final[tuple[Column[Entry], ...]] = (
    Column("MODE", _mode),
    Column("OWNER", _owner),
    Column("TYPE", _type),
    Column("VERSION", _version, is_right=True),
    Column("SIZE", _size, is_right=True),
    Column("TIERS", _tiers),
    Column("MODIFIED", _time),
    Column("NAME", _shown_name, style="bold"),
)


@command(app, "ls")
def ls(
    session: Session, path: Folder = "/", is_long: IsLong = False, is_recursive: IsRecursive = False
) -> None:
    """List namespaces, folders and cubes.

    Namespaces and folders end with a slash. In the long form the mode begins with 'n' for a
    namespace, 'd' for a folder and '!' for a quarantined cube.
    """
    entries = _entries(session, path, is_recursive)
    if is_long or session.out.is_json:
        session.out.table(_LONG, entries)
        return
    for entry in entries:
        print(printable(_shown_name(entry)))


def _entries(session: Session, path: str, is_recursive: bool) -> Iterator[Entry]:
    """Page through a folder; a path that is a cube's is that cube. Errors: ENOENT."""
    count = 0
    try:
        for entry in _pages(session, path, is_recursive):
            count += 1
            yield entry
    except MemError as error:
        if count or error.errno is not Errno.ENOENT or path.count("/") < 2:
            raise
    if not count and path.rstrip("/").count("/") >= 2:
        # Folders are parts of names: where nothing lies below, only a cube can be meant.
        yield session.call(StatCube(name=path.rstrip("/")))


def _pages(session: Session, path: str, is_recursive: bool) -> Iterator[Entry]:
    if path == "/":
        for space in session.client.namespaces():
            yield space
            if is_recursive:
                yield from _inside(session, space)
    elif is_recursive:
        yield from session.client.list(path, is_recursive=True)
    else:
        yield from _folder(session, path)


def _folder(session: Session, path: str) -> Iterator[Entry]:
    cursor = ""
    while True:
        reply = session.call(Readdir(path=path, cursor=cursor, limit=READDIR_MAX))
        yield from (Folded(name=name.removesuffix("/")) for name in reply.folders)
        yield from reply.entries
        cursor = reply.next_cursor
        if not cursor:
            return


def _inside(session: Session, space: NamespaceStat) -> Iterator[Entry]:
    """All cubes of a namespace; one that may only be entered is passed over with a remark."""
    try:
        yield from session.client.list(space.name, is_recursive=True)
    except MemError as error:
        if error.errno is not Errno.EACCES:
            raise
        session.note(f"memctl: {space.name}: {error.message}")


@command(app, "stat")
def stat(session: Session, name: Name) -> None:
    """Show all that is known of a cube: header, place, behaviour."""
    reply = session.call(StatCube(name=name))
    if session.out.is_json:
        session.out.record(reply, "")
        return
    rows = [row for row in _facts(reply) if row[1]]
    width = max(len(title) for title, _ in rows)
    for title, value in rows:
        session.out.styled([(title.ljust(width), "dim"), (f"  {printable(value)}", "")])


def _facts(stat: Stat) -> list[tuple[str, str]]:
    """Title and value of every line; empty values are left out."""
    rules, seen = stat.governance, stat.behaviour
    caches = kv_facts(stat)
    shown = {KV_ATTRIBUTE} if caches else set()
    attributes = {key: it for key, it in stat.attributes.items() if key not in shown}
    return [
        ("name", stat.name),
        ("id", stat.id.hex()),
        ("type", str(stat.type)),
        ("version", f"{stat.version} of {stat.latest_version}"),
        ("size", f"{human_bytes(stat.size_bytes)} ({stat.size_bytes} bytes)"),
        ("digest", f"xxh3-128 {stat.digest.hex()}"),
        ("created", local_time(stat.created_ns)),
        ("modified", local_time(stat.modified_ns)),
        ("tiers", ", ".join(stat.tiers)),
        ("on disk", _form(stat.stored)),
        ("durability", str(stat.durability)),
        ("owner", f"{owner(rules.owner_uid)} (uid {rules.owner_uid}, gid {rules.owner_gid})"),
        ("mode", f"{rules.mode:04o} {mode_text(rules.mode)}"),
        ("priority", str(rules.priority)),
        ("half-life", seconds_text(rules.half_life_s) if rules.half_life_s else ""),
        ("sensitivity", str(rules.sensitivity)),
        ("expires", local_time(rules.expires_ns) if rules.expires_ns else ""),
        *_about(stat.descriptive),
        ("parents", ", ".join(stat.parents)),
        *caches,
        ("attributes", ", ".join(f"{key}={plain(it)}" for key, it in attributes.items())),
        ("reads", f"{seen.reads}, mapped {seen.maps}, last {local_time(seen.last_access_ns)}"),
        ("faults", f"{seen.faults}, {counted(seen.evictions, 'eviction')}"),
        ("held by", f"{counted(stat.pins, 'pin')}, {counted(stat.maps, 'mapping')}"),
        ("state", "QUARANTINED: never served" if stat.is_quarantined else ""),
        ("outdated", stat.outdated),
    ]


def fallen_text(receipt: Receipt | None) -> str:
    """What was derived from a change, behind what is told of that."""
    if receipt is None:
        return ""
    removed = sum(each.is_removed for each in receipt.fallen)
    marked = len(receipt.fallen) - removed
    return f"; derived from it: {removed} removed, {marked} outdated" + (
        f", {receipt.count - len(receipt.fallen)} more"
        if receipt.count > len(receipt.fallen)
        else ""
    )


def _about(about: Descriptive) -> list[tuple[str, str]]:
    return [
        ("title", about.title),
        ("semantic type", about.semantic_type),
        ("origin", about.origin),
        ("producer", about.producer),
        ("media type", about.media_type),
        ("event time", local_time(about.event_time_ns) if about.event_time_ns else ""),
        ("valid from", local_time(about.valid_from_ns) if about.valid_from_ns else ""),
        ("valid to", local_time(about.valid_to_ns) if about.valid_to_ns else ""),
        ("superseded by", about.superseded_by),
        ("session", f"{about.session}, at {about.position}" if about.session else ""),
        ("tags", ", ".join(about.tags)),
    ]


def _form(form: StoredForm | None) -> str:
    if form is None:
        return ""
    digest = f"read back as xxh3-128 {form.content_digest.hex()}"
    return f"{form.form}, {human_bytes(form.size_bytes)}, error {form.error:.4f}, {digest}"


_VERSIONS: Final[tuple[Column[Stat], ...]] = (
    Column("VERSION", _version, is_right=True),
    Column("SIZE", _size, is_right=True),
    Column("TIERS", _tiers),
    Column("MODIFIED", _time),
    Column("DIGEST", lambda stat: stat.digest.hex(), style="dim"),
    Column("NAME", lambda stat: f"{stat.name}@v{stat.version}", style="bold"),
)


@command(app, "history")
def history(
    session: Session,
    name: Name,
    limit: Annotated[
        int, typer.Option("--limit", "-n", min=1, max=1000, help="At most so many.")
    ] = 100,
) -> None:
    """List the versions of a cube, newest first."""
    session.out.table(_VERSIONS, session.call(HistoryCube(name=name, limit=limit)).versions)


@command(app, "mv")
def mv(
    session: Session,
    name: Name,
    new_name: Annotated[
        str, typer.Argument(metavar="NEW_NAME", autocompletion=complete_cube, show_default=False)
    ],
    expect_version: ExpectVersion = None,
) -> None:
    """Give a cube another name; its id and versions stay."""
    reply = session.call(RenameCube(name=name, new_name=new_name, expected_version=expect_version))
    result = {"name": name, "new_name": new_name, "version": reply.version}
    session.out.record(result, f"{name} -> {new_name}")


@command(app, "rm")
def rm(
    session: Session,
    names: Annotated[
        list[str],
        typer.Argument(metavar="NAME...", autocompletion=complete_cube, show_default=False),
    ],
    expect_version: ExpectVersion = None,
) -> None:
    """Remove cubes with all their versions, or with NAME@v3 one old version.

    KV caches that stand on one that is removed go with it; how many there were is said. Stops at
    the first that cannot be removed; the ones before it are gone. Of a cube that is damaged
    (ECORRUPT) the administrator removes what is left.
    """
    for name in names:
        reply = session.call(UnlinkCube(name=name, expected_version=expect_version))
        freed = f"{counted(reply.versions, 'version')}, {human_bytes(reply.freed_bytes)}"
        if reply.dependents:
            freed += f"; {counted(reply.dependents, 'cube')} that stood on it went with it"
        freed += fallen_text(reply.receipt)
        session.out.record({"name": name, **plain(reply)}, f"removed {name}: {freed}")
