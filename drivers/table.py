"""The one list of drivers: a memory type is a folder and a row here.

Rows are top halves, which run in the daemon. Boot hands them to the kernel by their `type`.
"""

from typing import Final

from memosd.drivers.activation.top import ActivationDriver
from memosd.drivers.blob.top import BlobDriver
from memosd.drivers.parametric.top import ParametricDriver
from memosd.drivers.plaintext.top import PlaintextDriver

__all__ = ["DRIVERS", "TopHalf"]

TopHalf = PlaintextDriver | BlobDriver | ActivationDriver | ParametricDriver

DRIVERS: Final[tuple[TopHalf, ...]] = (
    PlaintextDriver(),  # text and JSON; found by their words
    BlobDriver(),  # any bytes; opaque
    ActivationDriver(),  # KV caches; found by their tokens
    ParametricDriver(),  # LoRA adapters
)
