"""What every request is, and the reply that says nothing but success."""

from typing import Generic, TypeVar

from libmem.abi.structs import Value

__all__ = ["Call", "Done"]

R = TypeVar("R", bound=Value)


class Call(Value, Generic[R], frozen=True):
    """A request whose reply is an R."""


class Done(Value, frozen=True):
    """Nothing to say but success."""
