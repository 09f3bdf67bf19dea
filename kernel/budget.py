"""A tier's budget that moves: what was configured, where it is to be, and where it is.

Invariants: used <= `bytes` <= `configured_bytes`, and `bytes` is `target_bytes` or, while reclaim
has yet to catch up with a lower target, what is used: it falls with every byte that is given back
and so nothing is admitted above the target meanwhile. Kernel thread only.
"""

__all__ = ["Budget"]


class Budget:
    """Of one tier; its account tells it what is used."""

    def __init__(self, configured_bytes: int) -> None:
        self.configured_bytes = configured_bytes
        self.target_bytes = configured_bytes
        self.bytes = configured_bytes

    def aim(self, target_bytes: int, used_bytes: int) -> None:
        """Let it be so much, from 0 to what was configured, as soon as what is used allows."""
        self.target_bytes = max(0, min(target_bytes, self.configured_bytes))
        self.follow(used_bytes)

    def follow(self, used_bytes: int) -> None:
        """So much is used now, after some was given back or the target moved."""
        self.bytes = max(self.target_bytes, used_bytes)
