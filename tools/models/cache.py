"""The cache directory: where finished models lie, and how one is known to be whole.

A folder is finished when its stamp, manifest.json, names the wheel it was made from and every file
matches the size and digest that the stamp has for it. Whatever is not, half made, damaged or made
from another wheel, counts as absent. That is also why nothing here is synced to the disk: after a
power cut the stamp tells. For tests, benchmarks and the demo, which ask `find_model`.
"""

import hashlib
from pathlib import Path
from typing import Final

import msgspec
import xxhash

from libmem.abi.errors import Errno, MemError
from libmem.abi.paths import models_dir
from memosd.tools.models.catalogue import Model, model_named

__all__ = ["STAMP", "find_model", "is_finished", "write_stamp"]

STAMP: Final = "manifest.json"


class _File(msgspec.Struct, frozen=True):
    size_bytes: int
    xxh3_128: str
    """Hexadecimal. It finds accidents, many times faster than a cryptographic digest."""


class _Stamp(msgspec.Struct, frozen=True):
    requirement: str
    wheel_sha256: str
    revision: int
    files: dict[str, _File]
    """By path in the folder; the stamp itself is not among them."""


def find_model(name: str) -> Path:
    """The finished folder of a model of the catalogue; every byte of it is looked at.

    Errors: ENOENT (not made yet, or damaged since), EINVAL (no such model).
    """
    model = model_named(name)
    folder = models_dir() / name
    if not is_finished(model, folder):
        raise MemError(Errno.ENOENT, f"no whole {name} in {models_dir()}: run `make models`")
    return folder


def is_finished(model: Model, folder: Path) -> bool:
    """True when `folder` holds all that was made of the model's wheel, undamaged."""
    try:
        stamp = msgspec.json.decode((folder / STAMP).read_bytes(), type=_Stamp)
        return _same_origin(model, stamp) and all(
            # The size first: it costs nothing, and a file cut short is the usual damage.
            (folder / path).stat().st_size == file.size_bytes and _file(folder / path) == file
            for path, file in stamp.files.items()
        )
    except (OSError, msgspec.DecodeError):
        return False


def write_stamp(model: Model, folder: Path) -> None:
    """Declare `folder` finished as it is. Errors: OSError."""
    files = {}
    for path in sorted(path for path in folder.rglob("*") if path.is_file()):
        # safetensors writes 0600; weights are public, and a cache may be shared with a daemon.
        path.chmod(0o644)
        files[str(path.relative_to(folder))] = _file(path)
    stamp = _Stamp(model.requirement, model.wheel_sha256, model.revision, files)
    text = msgspec.json.format(msgspec.json.encode(stamp), indent=2)
    (folder / STAMP).write_bytes(text + b"\n")


def _same_origin(model: Model, stamp: _Stamp) -> bool:
    made_from = (stamp.requirement, stamp.wheel_sha256, stamp.revision)
    return made_from == (model.requirement, model.wheel_sha256, model.revision)


def _file(path: Path) -> _File:
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, xxhash.xxh3_128)
    return _File(path.stat().st_size, digest.hexdigest())
