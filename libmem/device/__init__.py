"""libmem.device: payloads in an accelerator's memory, as tensors.

    import libmem, libmem.device

    with libmem.device.map_device(client, "/kv/manual") as mapped:
        mapped.tensors[-1]        # the cube's bytes, uint8, on the daemon's device

Needs torch. A device of the host (`device.name = "cpu"` in the daemon) is opened as private memory;
one of CUDA by the handle of its owner, the daemon's worker: see CAVEATS for what that means.
"""

import mmap
from typing import Any, Final

import msgspec
import torch
from torch.multiprocessing import reductions

from libmem.abi.errors import Errno, MemError
from libmem.abi.structs import TierName
from libmem.client import Client
from libmem.mapping import map_error
from libmem.parts import Part, Parts

__all__ = ["DeviceMapping", "map_device", "opening_of"]

_MEMORY: Final = (6, 7, 8, 9, 11, 12, 13, 14)
"""Those arguments of `rebuild_cuda_tensor` that say where the memory is, and who counts its users.
The daemon counts them too, and has the owner keep the memory for as long as there are any."""


class DeviceMapping:
    """A cube on a device, with what it stands on. A context manager that gives it back.

    Keep no tensor of it beyond `close`: the memory may then be another cube's.
    """

    def __init__(self, parts: Parts) -> None:
        self._parts = parts
        self.device = parts.device
        """As torch names it."""
        self.attributes = parts.attributes
        try:
            self.tensors: tuple[torch.Tensor, ...] = tuple(
                _opened(part, parts.name) for part in parts.parts
            )
            """The parts as `Parts.parts` has them: uint8, one dimension; the root first."""
        except BaseException:
            parts.give_back()
            raise
        parts.close_descriptors()

    def __enter__(self) -> "DeviceMapping":
        return self

    def __exit__(self, kind: object, error: object, trace: object) -> None:
        self.close()

    @property
    def is_stale(self) -> bool:
        """True when the daemon no longer knows of this (restart, fork, closed client)."""
        return self._parts.is_stale

    def close(self) -> None:
        """Let it go from the device. Idempotent, never waits."""
        self.tensors = ()
        self._parts.give_back()


def map_device(client: Client, name: str, *, model: str = "") -> DeviceMapping:
    """Have a cube copied to the daemon's device, unless it is there, and open it.

    `model`: the fingerprint it must have.
    Errors: EOPNOTSUPP (no device), ENOMEM, EDQUOT, EAGAIN, EMODEL, and those of `map`.
    """
    return DeviceMapping(client.map_parts(name, model=model, tier=TierName.DEVICE))


def _opened(part: Part, name: str) -> torch.Tensor:
    if part.opening:
        return _of_cuda(part.opening, part.size_bytes)
    try:
        memory = mmap.mmap(part.fd, part.size_bytes, flags=mmap.MAP_PRIVATE)
    except OSError as error:
        raise map_error(name, error) from None
    return torch.frombuffer(memory, dtype=torch.uint8)


def opening_of(frame: torch.Tensor) -> bytes:  # pragma: no cover - needs a GPU
    """How other processes open a tensor of bytes on CUDA, for as long as this one keeps it."""
    _, fields = reductions.reduce_tensor(frame)
    return msgspec.msgpack.encode([fields[at] for at in _MEMORY])


def _of_cuda(opening: bytes, size_bytes: int) -> torch.Tensor:
    """Errors: EBADMSG (not what a worker of this version says), EIO (the owner is gone)."""
    try:
        memory: list[Any] = msgspec.msgpack.decode(opening, type=list)
        if len(memory) != len(_MEMORY):
            raise ValueError(f"{len(memory)} fields")
    except ValueError as error:
        raise MemError(Errno.EBADMSG, f"an unknown way to open device memory: {error}") from None
    fields: list[Any] = [
        torch.Tensor, torch.Size([size_bytes]), (1,), 0, torch.TypedStorage, torch.uint8,
        *memory[:4], False, *memory[4:],
    ]  # fmt: skip
    try:
        opened: torch.Tensor = reductions.rebuild_cuda_tensor(*fields)
    except (RuntimeError, AssertionError, TypeError) as error:
        reason = str(error).splitlines()[0]
        raise MemError(Errno.EIO, f"cannot open the device's memory: {reason}") from None
    return opened
