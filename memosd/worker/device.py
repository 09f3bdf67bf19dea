"""`python -m memosd.worker.device`: owns an accelerator's memory and copies payloads into it.

Does the jobs of class `load` and `drop`. On an accelerator a frame is a tensor of bytes that lives
here until it is dropped, or until this process ends; on the host it is memory that the daemon sent
along, and nothing stays. Each copy is one slice: nobody goes before it.
"""

import argparse
import mmap
import sys
from typing import TYPE_CHECKING, Final

from libmem import Client
from libmem.abi.errors import Errno, MemError
from libmem.abi.jobs import DropRequest, JobClass, LoadRequest, LoadResult
from libmem.abi.wire import args_decoder, encode
from libmem.ledger import close_all
from memosd.worker.loop import Slices, Table
from memosd.worker.process import parser, work

if TYPE_CHECKING:
    import torch

__all__ = ["DeviceMemory", "device_table"]

_load: Final = args_decoder(LoadRequest)
_drop: Final = args_decoder(DropRequest)


class DeviceMemory:
    """The frames of one device."""

    def __init__(self, name: str, client: Client) -> None:
        """Errors: EOPNOTSUPP (no torch, or it has no such device)."""
        try:
            import torch  # seconds, and here alone
        except ImportError:
            raise MemError(Errno.EOPNOTSUPP, "torch is not installed") from None
        self._torch = torch
        try:
            self._device = torch.device(name)
            torch.empty(1, device=self._device)
        except (RuntimeError, AssertionError) as error:  # the latter: built without CUDA
            reason = str(error).splitlines()[0]
            raise MemError(Errno.EOPNOTSUPP, f"torch cannot use {name}: {reason}") from None
        self._client = client
        self._frames: dict[bytes, torch.Tensor] = {}

    def load(self, body: bytes) -> Slices:
        """Errors: ENOMEM, EBADF (nobody waits for the copy any more)."""
        yield from ()
        request = _load.decode(body)
        grant = self._client.map_job(request.key)
        try:
            opening = self._copied(request, grant.fds)
        finally:
            close_all(grant.fds)
            grant.lease.give_back()
        return encode(LoadResult(opening))

    def _copied(self, request: LoadRequest, fds: list[int]) -> bytes:
        # Sealed memory: only a private mapping may be writable, which torch wants it to be.
        with mmap.mmap(fds[0], request.size_bytes, flags=mmap.MAP_PRIVATE) as source:
            given = self._torch.frombuffer(source, dtype=self._torch.uint8)
            try:
                if len(fds) > 1:
                    self._fill(fds[1], given)
                    return b""
                return self._keep(request.key, given)
            finally:
                del given  # or the mapping could not be closed

    def _fill(self, fd: int, given: "torch.Tensor") -> None:
        """Into the host's memory."""
        with mmap.mmap(fd, len(given)) as target:
            frame = self._torch.frombuffer(target, dtype=self._torch.uint8)
            frame.copy_(given)
            del frame

    def _keep(self, key: bytes, given: "torch.Tensor") -> bytes:  # pragma: no cover - needs a GPU
        """Into the device's memory; how others open it."""
        from libmem.device import opening_of

        frame = given.to(self._device)
        self._torch.cuda.synchronize(self._device)
        self._frames[key] = frame
        return opening_of(frame)

    def drop(self, body: bytes) -> Slices:
        yield from ()
        for key in _drop.decode(body).keys:
            self._frames.pop(key, None)
        return b""


def device_table(memory: DeviceMemory) -> Table:
    """What the worker of a device does, by class of jobs."""
    return {JobClass.LOAD: memory.load, JobClass.DROP: memory.drop}


def _table(options: argparse.Namespace, client: Client) -> Table:
    return device_table(DeviceMemory(options.device, client))


if __name__ == "__main__":
    sys.exit(work(parser().parse_args(), _table))
