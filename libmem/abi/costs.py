"""What loading and computing take, as it was measured. Plain data, as in `structs`."""

from libmem.abi.structs import Value

__all__ = ["CostStat", "PrefillSample"]


class PrefillSample(Value, frozen=True):
    """One prefill, as a client measured it; or how long it took to map a prefix, or both."""

    tokens: int = 0
    """Computed, in each row."""
    cached_tokens: int = 0
    """Before them, not computed."""
    rows: int = 1
    seconds: float = 0.0
    """To the first new token; 0: not measured."""
    map_s: float = 0.0
    """To map a prefix that was in RAM; 0: not measured."""


class CostStat(Value, frozen=True):
    """What the kernel learned of one cost."""

    name: str
    """`disk load`, `disk store encoded`, `prefill`, `map`."""
    is_measured: bool
    """False: too few measurements, mostly a guess."""
    samples: int
    measured_ns: int
    """When it was measured last."""
    latency_s: float = 0.0
    bytes_per_s: float = 0.0
    tokens_per_s: float = 0.0
    """Of a prompt of 1,024 tokens."""
    model: str = ""
    """Fingerprint."""
    uid: int = -1
    """Whose clients reported it."""
