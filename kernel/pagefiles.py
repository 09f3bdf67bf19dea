"""Page files: payloads on their way to and from the disk tier, each in the form its row says.

Most lie there as they were committed. A type may have a smaller form for its payloads
(`ports.Coding`): then the row in `pages` says which form, and its size, digest and error. What is
read is checked against the digest of its form before it is decoded, and what was decoded against
the digest that was found when it was encoded. Kernel thread only; bytes move on I/O threads.
"""

from typing import Any, Final, NamedTuple

import structlog

from libmem.abi.coding import UnfitError
from libmem.abi.digest import Manifest
from libmem.abi.errors import Errno, MemError
from libmem.abi.structs import CubeType, StoredForm
from memosd.kernel.costs import Costs, Transfer
from memosd.kernel.pagetable import Cube, PageTable
from memosd.kernel.ports import Coding, Driver, Frame, FrameTier, Io, PayloadKey
from memosd.kernel.rows import VersionRow
from memosd.kernel.tierhealth import WatchedTier

__all__ = ["PageFiles", "Stored"]

_log = structlog.get_logger("memosd.kernel")
_LOAD: Final = Transfer("disk", "load")
_STORE: Final = Transfer("disk", "store")


class Stored(NamedTuple):
    """What became of a payload that was to be stored in another form."""

    form: StoredForm | None
    """None: it stays as it is."""
    reason: str
    """For people: the error, or why not."""


class PageFiles:
    """The disk tier, by the rows of `pages`."""

    def __init__(
        self, table: PageTable, tiers: tuple[FrameTier, WatchedTier], io: Io,
        drivers: dict[CubeType, Driver], costs: Costs,
    ) -> None:  # fmt: skip
        self._table = table
        self._ram, self._disk = tiers
        self._io = io
        self._drivers = drivers
        self._costs = costs

    def coding(self, cube_type: CubeType, attributes: dict[str, Any]) -> Coding | None:
        """What makes the form that such a payload shall have on disk; None: as it is."""
        coding = self._drivers[cube_type].coding(attributes)
        return coding if coding is not None and coding.is_wanted else None

    def charge_bytes(self, version: VersionRow) -> int:
        """What a payload costs on disk, by its rows."""
        if version.is_inline:
            return version.size_bytes
        form = self._table.stored_form(version.payload_id)
        return self._disk.charge_bytes(version.size_bytes if form is None else form.size_bytes)

    async def store(
        self, key: PayloadKey, frame: Frame, manifest: Manifest, coding: Coding | None
    ) -> Stored | None:
        """Put a sealed frame on disk; None where no other form was asked for. Its row is the
        caller's. Errors: ENOSPC, ENOMEM, EIO."""
        stored = None
        if coding is not None:
            stored = await self._costs.timed(
                _STORE._replace(is_encoded=True), frame.size_bytes,
                self._io, self._encode, key, frame, coding,
            )  # fmt: skip
            if stored.form is not None:
                return stored
        await self._costs.timed(
            _STORE, frame.size_bytes, self._io, self._disk.store, key, frame.fd, manifest
        )
        return stored

    def _encode(self, key: PayloadKey, frame: Frame, coding: Coding) -> Stored:
        try:
            encoding = coding.encode(frame.fd)
            manifest = self._disk.store_blocks(key, encoding, frame.size_bytes)
        except UnfitError as unfit:
            return Stored(None, f"stays as it is: {unfit}")
        except (MemError, OSError):
            raise
        except Exception as error:  # noqa: BLE001
            # Whatever a payload does to the code that encodes it, it can be stored as it is.
            _log.exception("not encoded", payload=key.hex())
            return Stored(None, f"stays as it is: {type(error).__name__}: {error}")
        form = StoredForm(
            encoding.form,
            manifest.size_bytes,
            manifest.digest,
            encoding.error,
            encoding.content_digest,
        )
        sizes = f"{frame.size_bytes:,} -> {form.size_bytes:,} bytes"
        return Stored(form, f"{form.form}: error {form.error:.4f}, {sizes}")

    async def load(self, cube: Cube, frame: Frame) -> None:
        """Fill a fresh frame of the payload's size. Errors: ENOENT, EIO, ENOMEM, ECORRUPT,
        EOPNOTSUPP (this daemon cannot decode it)."""
        form = self._table.stored_form(cube.key)
        if form is None:
            version = cube.version
            await self._costs.timed(
                _LOAD, version.size_bytes, self._io,
                self._disk.load, cube.key, frame.fd, version.size_bytes, version.digest,
            )  # fmt: skip
            self._ram.seal(frame, frame.size_bytes)
            return
        driver = self._drivers.get(cube.row.type)
        coding = driver.coding(cube.version.attributes) if driver is not None else None
        if coding is None:
            raise MemError(Errno.EOPNOTSUPP, f"nothing decodes a {cube.row.type} cube")
        await self._costs.timed(
            _LOAD._replace(is_encoded=True), frame.size_bytes,
            self._io, self._decode, cube.key, frame, form, coding,
        )  # fmt: skip

    def _decode(self, key: PayloadKey, frame: Frame, form: StoredForm, coding: Coding) -> None:
        blocks = self._disk.blocks(key, form.size_bytes, form.digest)
        try:
            coding.decode(form.form, blocks, frame.fd)
        except (MemError, OSError):
            raise
        except Exception as error:  # noqa: BLE001
            _log.exception("not decoded", payload=key.hex())
            raise MemError(Errno.EIO, f"not decoded: {type(error).__name__}: {error}") from None
        self._ram.seal(frame, frame.size_bytes)
        if self._ram.hash(frame).digest != form.content_digest:
            raise MemError(Errno.ECORRUPT, "it decodes to something else than it did once")

    async def verify(self, version: VersionRow) -> None:
        """Check what lies on disk. Errors: ENOENT, EIO, ECORRUPT."""
        form = self._table.stored_form(version.payload_id)
        shown = version if form is None else form
        await self._io.run(self._disk.verify, version.payload_id, shown.size_bytes, shown.digest)
