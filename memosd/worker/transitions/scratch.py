"""Work that may go on later: a file for each, under the daemon's data directory.

Owns the folder. A file is written whole or not at all, for its owner alone; whoever does the same
work again, after its worker died or the daemon was restarted, finds it by what it is about. A file
that cannot be read, or not be written for want of room, is as if it had never been.
"""

import hashlib
import os
import time
from pathlib import Path
from typing import Final

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

__all__ = ["Scratch"]

_AGE_MAX_S: Final = 7 * 86_400
"""Nobody went on with what is older."""
_ROOM_BYTES: Final = 4 << 30
"""That all of it may take: work of users who never come back must not fill the disk."""


class Scratch:
    """The folder; what is too old is removed when it is opened."""

    def __init__(self, folder: Path, pause_s: float = 30.0, room_bytes: int = _ROOM_BYTES) -> None:
        """`pause_s`: how much work a death may cost, at least."""
        self._folder = folder
        self._room_bytes = room_bytes
        self.pause_s = pause_s
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        for file in folder.iterdir():
            if time.time() - file.stat().st_mtime > _AGE_MAX_S:
                file.unlink(missing_ok=True)

    def _file(self, about: bytes) -> Path:
        return self._folder / f"{hashlib.sha256(about).hexdigest()}.safetensors"

    def load(self, about: bytes) -> dict[str, torch.Tensor] | None:
        """What was kept of this work; None where there is nothing that can be read."""
        try:
            return load_file(self._file(about))
        except (OSError, SafetensorError):
            return None

    def keep(self, about: bytes, tensors: dict[str, torch.Tensor]) -> bool:
        """Replace what is kept; False where there was no room for it, and the old one stays."""
        file = self._file(about)
        coming = file.with_suffix(f".{os.getpid()}")
        try:
            save_file({name: each.cpu().contiguous() for name, each in tensors.items()}, coming)
            coming.chmod(0o600)
            coming.rename(file)
        except (OSError, SafetensorError):
            coming.unlink(missing_ok=True)
            return False
        self._make_room()
        return True

    def _make_room(self) -> None:
        """The oldest go first; what was written last stays."""
        stats = {file: file.stat() for file in self._folder.iterdir()}
        size_bytes = sum(stat.st_size for stat in stats.values())
        for file in sorted(stats, key=lambda each: stats[each].st_mtime_ns)[:-1]:
            if size_bytes <= self._room_bytes:
                return
            file.unlink(missing_ok=True)
            size_bytes -= stats[file].st_size

    def forget(self, about: bytes) -> None:
        """It is done. Idempotent."""
        self._file(about).unlink(missing_ok=True)
