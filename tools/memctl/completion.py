"""Completion of cube names in the shell.

Asks the running daemon for one folder per press of the key. Invariant: it never prints, never
fails and never waits long; without a daemon there are simply no suggestions.
"""

from typing import Final

import typer

from libmem.abi.calls import Readdir
from libmem.abi.errors import MemError
from libmem.abi.limits import READDIR_MAX
from memosd.tools.memctl.command import Settings

__all__ = ["complete_cube", "complete_namespace"]

_PATIENCE_S: Final = 1.0


def complete_cube(context: typer.Context, incomplete: str) -> list[str]:
    """Cubes, and folders with a final slash, that begin with what was typed."""
    folder = incomplete[: incomplete.rfind("/") + 1] or "/"
    return _names(context, folder)


def complete_namespace(context: typer.Context, incomplete: str) -> list[str]:
    """Namespaces that begin with what was typed."""
    if "/" in incomplete[1:]:
        return []
    return [name.removesuffix("/") for name in _names(context, "/")]


def _names(context: typer.Context, folder: str) -> list[str]:
    settings: Settings = context.find_root().obj or Settings()
    named = context.params.get("runtime_dir") or context.find_root().params.get("runtime_dir")
    try:
        with settings.connect(named, timeout_s=_PATIENCE_S, name="memctl completion") as client:
            reply = client.call(Readdir(path=folder, limit=READDIR_MAX), timeout_s=_PATIENCE_S)
    except MemError:
        return []
    folders = [*reply.folders, *(namespace.name for namespace in reply.namespaces)]
    return [f"{name.removesuffix('/')}/" for name in folders] + [
        cube.name for cube in reply.entries
    ]
