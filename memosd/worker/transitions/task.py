"""One transition as its worker sees it: a session that acts for the user, and a way to report.

Owns what all recipes share: how sources are read, how progress is told and cancelling heard of.
"""

from pathlib import Path
from typing import Final

from libmem import Client
from libmem.abi.calls import ReportJob
from libmem.abi.errors import Errno, MemError
from libmem.abi.jobs import TransmuteRequest
from libmem.abi.lineage import Derivation
from libmem.abi.structs import CubeType, Stat
from libmem.abi.transitions import recipe_name, settings_of
from libmem.connection import new_connection
from memosd.worker.transitions.scratch import Scratch

__all__ = ["Task"]

_TEXTS_MAX_BYTES: Final = 64 << 20
_PATIENCE_S: Final = 600.0
"""With a daemon that reads from a slow disk."""


class Task:
    """A context manager: leaving it ends the session."""

    def __init__(self, runtime_dir: Path, request: TransmuteRequest, scratch: Scratch) -> None:
        self.request = request
        self.scratch = scratch
        program = f"memosd transition {request.number}"
        connection = new_connection(runtime_dir, program, request.number)
        self.client = Client(connection, _PATIENCE_S)

    def __enter__(self) -> "Task":
        return self

    def __exit__(self, *error: object) -> None:
        self.client.close()

    def texts(self) -> list[str]:
        """The sources as texts. Errors: EOPNOTSUPP (of another type), EINVAL (more than any model
        reads), and those of `read`."""
        sources = self.request.sources
        size_bytes = sum(self._require(name, CubeType.PLAINTEXT).size_bytes for name in sources)
        if size_bytes > _TEXTS_MAX_BYTES:
            raise MemError(Errno.EINVAL, f"texts of {size_bytes} bytes; at most {_TEXTS_MAX_BYTES}")
        return [self.client.read(name).decode() for name in sources]

    def only_source(self, cube_type: CubeType) -> str:
        """Errors: EINVAL (there are several), EOPNOTSUPP (of another type)."""
        if len(self.request.sources) != 1:
            raise MemError(Errno.EINVAL, "this recipe takes one source")
        self._require(self.request.sources[0], cube_type)
        return self.request.sources[0]

    def _require(self, name: str, cube_type: CubeType) -> Stat:
        stat = self.client.stat(name)
        if stat.type is not cube_type:
            raise MemError(Errno.EOPNOTSUPP, f"{name} is of type {stat.type}, not {cube_type}")
        return stat

    def report(
        self, done: int, total: int, note: str = "", quality: dict[str, float] | None = None
    ) -> None:
        """Tell how far it is. Errors: ECANCELED: nobody wants it any more."""
        report = ReportJob(self.request.number, done, total, note, quality or {})
        if not self.client.call(report).is_wanted:
            raise MemError(Errno.ECANCELED, "nobody wants the result any more")

    def derivation(self, quality: dict[str, float] | None = None) -> Derivation:
        """What the result says of how it was made."""
        recipe = self.request.recipe
        return Derivation(recipe_name(recipe), settings_of(recipe), quality or {})
