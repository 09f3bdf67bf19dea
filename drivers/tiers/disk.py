"""The disk tier: one page file per payload, below `pages/`.

Owns the directory `pages/` and every file name in it: `pages/ab/<payload id>.page`, the id in
hexadecimal and `ab` its last two digits (ids are ordered by time, so their heads would all lie in
one folder). A name without a leading dot is a whole, synced file: writing happens under a
temporary name, which only `remove_leftovers` looks at. A file counts once the kernel has
committed a row for it; boot frees those without one. Called from I/O threads.
"""

import os
import re
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Final

from libmem.abi import failpoints
from libmem.abi.digest import Manifest
from libmem.abi.errors import Errno, MemError
from memosd.drivers.tiers import pagefile, payload
from memosd.drivers.tiers.payload import PayloadKey, os_errors

__all__ = ["DiskTier"]

_FOLDERS: Final = tuple(f"{tail:02x}" for tail in range(256))
_FILE_NAME: Final = re.compile(r"([0-9a-f]{32})\.page")
_LEFTOVER: Final = re.compile(r"\..+\.page\.([0-9a-f]{8})\.tmp")


class DiskTier:
    """Payloads as page files in `directory`/pages, durable when `store` returns.

    Errors at opening: ENOSPC, EIO (the folders cannot be made).
    """

    name: str = "disk"
    is_durable: bool = True

    def __init__(self, directory: Path) -> None:
        # In the temporary names: tells our writes from those that a crash cut short.
        self._mark = os.urandom(4).hex()
        self._root = os.path.join(directory, "pages")
        with os_errors(self._root):
            self._make_folders(directory)

    def charge_bytes(self, size_bytes: int) -> int:
        """The size of the file, trailer included."""
        return pagefile.file_bytes(size_bytes)

    def store(self, key: PayloadKey, fd: int, manifest: Manifest) -> None:
        """Write the page file, replacing one of the same key; all or nothing.

        Errors: ENOSPC, ENOMEM, EIO; EINVAL where `fd` holds fewer bytes than the manifest.
        """
        self._save(key, lambda file: pagefile.write(file, fd, key, manifest))

    def store_blocks(self, key: PayloadKey, blocks: Iterable[memoryview | bytes]) -> Manifest:
        """As `store`, of what comes block by block; whatever `blocks` raises leaves nothing."""
        made: list[Manifest] = []
        self._save(key, lambda file: made.append(pagefile.write_blocks(file, key, blocks)))
        return made[0]

    def _save(self, key: PayloadKey, write: Callable[[int], None]) -> None:
        """Have a new file written, and put it under the key.

        Source: restic's local backend, Save(); LWN 457667, "Ensuring data reaches disk".
        """
        folder, name = self._place(key)
        temporary = f"{folder}/.{name}.{self._mark}.tmp"
        made = temporary
        try:
            with os_errors(f"page file {name}"):
                _write_synced(temporary, write)
                failpoints.hit("page.rename.before")
                os.rename(temporary, f"{folder}/{name}")
                made = f"{folder}/{name}"
                failpoints.hit("page.rename.after")
                # The new name lies in the folder, not in the file: it needs its own sync.
                _sync_directory(folder)
        except BaseException:
            with suppress(OSError):
                os.unlink(made)
            raise

    def load(self, key: PayloadKey, fd: int, size_bytes: int, digest: bytes) -> None:
        """Copy the payload into the zeroed memory `fd`, then check every page of that memory.

        Errors: ENOENT, EIO, ENOMEM, ECORRUPT (with `page` where one is at fault).
        """
        with self._opened(key) as source:
            manifest = _recognise(source, key, size_bytes, digest)
            payload.copy(source, fd, 0, size_bytes)
            # What was read back from `fd` is what will be mapped; the file could have changed.
            payload.check_pages(fd, manifest)

    def read(self, key: PayloadKey, size_bytes: int, digest: bytes, limit_bytes: int) -> bytes:
        """The payload's first `limit_bytes`; only pages that they lie in are read, and checked.

        Errors: ENOENT, EIO, ECORRUPT (with `page` where one is at fault).
        """
        with self._opened(key) as source:
            manifest = _recognise(source, key, size_bytes, digest)
            pages = payload.checked_pages(source, manifest, limit_bytes)
            return b"".join(pages)[:limit_bytes]

    def blocks(self, key: PayloadKey, size_bytes: int, digest: bytes) -> Iterator[bytes]:
        """The payload page by page, each checked. Errors: ENOENT, EIO, ECORRUPT (with `page`)."""
        with self._opened(key) as source:
            manifest = _recognise(source, key, size_bytes, digest)
            yield from payload.checked_pages(source, manifest, size_bytes)

    def verify(self, key: PayloadKey, size_bytes: int, digest: bytes) -> None:
        """Check the trailer and every page of the file. Errors: ENOENT, EIO, ECORRUPT."""
        with self._opened(key) as source:
            payload.check_pages(source, _recognise(source, key, size_bytes, digest))

    def free(self, key: PayloadKey) -> None:
        """Remove the file. Not synced: one that comes back after a crash has no row, and boot
        frees it again. Errors: EIO."""
        folder, name = self._place(key)
        with os_errors(f"page file {name}"), suppress(FileNotFoundError):
            failpoints.hit("page.free.before")
            os.unlink(f"{folder}/{name}")

    def keys(self) -> Iterator[PayloadKey]:
        """Every page file by its name, in no order; what is named otherwise is passed over.

        Errors: EIO.
        """
        for folder, name in self._files():
            match = _FILE_NAME.fullmatch(name)
            if match and match[1].endswith(folder):
                yield bytes.fromhex(match[1])

    def remove_leftovers(self) -> int:
        """Remove what writes that a crash cut short left behind; our own go on meanwhile.

        Returns how many. Errors: EIO.
        """
        leftovers = []
        for folder, name in self._files():
            match = _LEFTOVER.fullmatch(name)
            if match and match[1] != self._mark:
                leftovers.append((folder, name))
        with os_errors(self._root):
            for folder, name in leftovers:
                os.unlink(f"{self._root}/{folder}/{name}")
        return len(leftovers)

    def _files(self) -> Iterator[tuple[str, str]]:
        """(folder, file name) of everything in our folders, one folder at a time."""
        with os_errors(self._root):
            for folder in _FOLDERS:
                for name in os.listdir(f"{self._root}/{folder}"):
                    yield folder, name

    def _place(self, key: PayloadKey) -> tuple[str, str]:
        """(folder, file name) of a key."""
        digits = key.hex()
        return f"{self._root}/{digits[-2:]}", f"{digits}.page"

    @contextmanager
    def _opened(self, key: PayloadKey) -> Iterator[int]:
        folder, name = self._place(key)
        with os_errors(f"page file {name}"):
            try:
                fd = os.open(f"{folder}/{name}", os.O_RDONLY | os.O_CLOEXEC)
            except FileNotFoundError:
                raise MemError(Errno.ENOENT, f"no page file {name}") from None
            try:
                yield fd
            finally:
                os.close(fd)

    def _make_folders(self, directory: Path) -> None:
        # All at once, synced at boot: a folder made by one thread's first write must not be lost
        # by a crash after another thread's write to it was acknowledged.
        os.makedirs(self._root, mode=0o700, exist_ok=True)
        missing = set(_FOLDERS).difference(os.listdir(self._root))
        for folder in missing:
            os.mkdir(f"{self._root}/{folder}", mode=0o700)
        if missing:
            _sync_directory(self._root)
            _sync_directory(str(directory))


def _write_synced(path: str, write: Callable[[int], None]) -> None:
    fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    try:
        write(fd)
        failpoints.hit("page.fsync.before")
        # Before the rename: else a crash could leave the final name on a file without content.
        os.fsync(fd)
    finally:
        os.close(fd)


def _recognise(fd: int, key: PayloadKey, size_bytes: int, digest: bytes) -> Manifest:
    """The file's manifest, if it is of this very payload. Errors: ECORRUPT."""
    trailer = pagefile.read_trailer(fd)
    if trailer.key != key:
        raise MemError(Errno.ECORRUPT, f"the file says it is {trailer.key.hex()}")
    if trailer.manifest.size_bytes != size_bytes or trailer.manifest.digest != digest:
        raise MemError(Errno.ECORRUPT, "the file holds another payload than the table says")
    return trailer.manifest


def _sync_directory(path: str) -> None:
    fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)
