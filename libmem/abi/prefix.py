"""What drivers tell the kernel of payloads that begin with tokens: plain values."""

from collections.abc import Callable
from typing import Any, NamedTuple

__all__ = ["Base", "Prefix"]


class Prefix(NamedTuple):
    """A payload that is a model's state after some tokens."""

    model: bytes
    """Fingerprint, 32 bytes."""
    start: int
    """The first token that the payload itself holds; those before are its base's."""
    tokens: bytes
    """Token ids from `start` on: u32, little endian."""
    base: bytes = b""
    """Payload id of what it stands on."""


class Base(NamedTuple):
    """The payload that another one is to stand on."""

    key: bytes
    attributes: dict[str, Any]
    packed: Callable[[int], bytes]
    """The first so many of its token ids, those that it stands on included. Any thread."""
