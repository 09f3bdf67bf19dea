"""Functions for pools of processes; a spawned worker must be able to import them."""

import libmem

__all__ = ["fail", "inherited", "read"]

inherited: libmem.Client | None = None
"""The parent's client, where the worker was forked."""


def read(runtime_dir: str, name: str) -> bytes:
    """A cube's payload, through the inherited client or one of the worker's own."""
    if inherited is not None:
        return inherited.read(name)
    with libmem.connect(runtime_dir) as client:
        return client.read(name)


def fail(runtime_dir: str, _name: str) -> None:
    """Raise an error that has to travel back to the parent."""
    with libmem.connect(runtime_dir) as client:
        client.stat("/a/none")
