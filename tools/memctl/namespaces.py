"""The namespace commands: mkns, rmns, quota."""

from typing import Annotated, Final

import msgspec
import typer

from libmem.abi.calls import MakeNamespace, RemoveNamespace, SetQuota, StatNamespace
from libmem.abi.structs import NamespaceStat
from memosd.tools.memctl.command import Session, command
from memosd.tools.memctl.completion import complete_namespace
from memosd.tools.memctl.cubes import owner
from memosd.tools.memctl.output import Column
from memosd.tools.memctl.units import human_bytes, mode_text, parse_bytes, parse_mode

__all__ = ["app"]

app: Final = typer.Typer(rich_help_panel="Namespaces")

Namespace = Annotated[
    str,
    typer.Argument(metavar="/NAMESPACE", autocompletion=complete_namespace, show_default=False),
]
Ceiling = Annotated[
    str | None, typer.Option(metavar="SIZE", help="Such as 512MiB; 0: none.", show_default=False)
]


@command(app, "mkns")
def mkns(
    session: Session,
    name: Namespace,
    mode: Annotated[
        str | None,
        typer.Option("--mode", metavar="OCTAL", help="Default: as configured, usually 0700."),
    ] = None,
) -> None:
    """Make a namespace, owned by the caller."""
    made = session.call(MakeNamespace(name=name, mode=None if mode is None else parse_mode(mode)))
    session.out.record(made, f"{made.name}  {mode_text(made.mode)}  {owner(made.owner_uid)}")


@command(app, "rmns")
def rmns(session: Session, name: Namespace) -> None:
    """Remove an empty namespace."""
    session.call(RemoveNamespace(name=name))
    session.out.record({"name": name}, f"removed {name}")


class Account(msgspec.Struct, frozen=True):
    """One row of `quota`: a resource, what is used of it, its ceiling."""

    resource: str
    used: str
    ceiling: str


_ACCOUNT: Final[tuple[Column[Account], ...]] = (
    Column("RESOURCE", lambda row: row.resource, style="bold"),
    Column("USED", lambda row: row.used, is_right=True),
    Column("QUOTA", lambda row: row.ceiling, is_right=True),
)


@command(app, "quota")
def quota(
    session: Session,
    name: Namespace,
    disk: Ceiling = None,
    ram: Ceiling = None,
    cubes: Annotated[
        int | None,
        typer.Option(metavar="N", min=0, help="How many cubes; 0: any number.", show_default=False),
    ] = None,
) -> None:
    """Show a namespace's ceilings and use, or set those that are given."""
    space = session.call(StatNamespace(name=name))
    changes = {
        "disk_bytes": None if disk is None else parse_bytes(disk),
        "ram_bytes": None if ram is None else parse_bytes(ram),
        "cubes": cubes,
    }
    given = {key: value for key, value in changes.items() if value is not None}
    if given:
        wanted = msgspec.structs.replace(space.quota, **given)
        space = session.call(SetQuota(namespace=name, quota=wanted))
    if session.out.is_json:
        session.out.record(space, "")
        return
    session.out.styled(
        [(space.name, "bold"), (f"  {mode_text(space.mode)}  {owner(space.owner_uid)}", "")]
    )
    session.out.table(_ACCOUNT, _accounts(space))


def _accounts(space: NamespaceStat) -> list[Account]:
    used, most = space.usage, space.quota

    def size(ceiling: int) -> str:
        return human_bytes(ceiling) if ceiling else "none"

    return [
        Account("disk", human_bytes(used.disk_bytes), size(most.disk_bytes)),
        Account("ram", human_bytes(used.ram_bytes), size(most.ram_bytes)),
        Account("cubes", str(used.cubes), str(most.cubes) if most.cubes else "none"),
    ]
