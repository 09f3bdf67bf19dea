"""Requests about costs: what computing took, and whether to load or to compute."""

from libmem.abi.calls.base import Call
from libmem.abi.costs import PrefillSample
from libmem.abi.structs import Value

__all__ = ["PlanPrefix", "PlanReply", "ReportPrefill", "ReportReply"]


class ReportReply(Value, frozen=True):
    taken: int
    """Samples that count from now on; the others came too fast, or made no sense."""


class ReportPrefill(Call[ReportReply], frozen=True):
    """What prefills took on the caller's machine. It counts for what the caller's user is told,
    and for what becomes of that user's cubes."""

    model: str
    """Fingerprint: 64 hexadecimal digits."""
    samples: tuple[PrefillSample, ...]
    """64 at most."""


class PlanReply(Value, frozen=True):
    """The longest shared prefix, and how much of it is quicker loaded than computed."""

    name: str = ""
    """With its version: `/ns/path@v1`; empty where no cube begins as the prompt does."""
    tokens: int = 0
    """Shared with the prompt, from position 0 on."""
    cube_tokens: int = 0
    """All that the cube has."""
    load_name: str = ""
    """What to map: the cube, or one that it stands on; empty: nothing, compute all."""
    load_tokens: int = 0
    """How many tokens of that to map; those behind are to be computed."""
    plan_s: float = 0.0
    """To the first token, by this plan, as far as it can be foreseen."""
    load_s: float = 0.0
    """The same if all that is shared is loaded."""
    compute_s: float = 0.0
    """The same if everything is computed."""
    fault_s: float = 0.0
    """Of `plan_s`, what loading into RAM takes; 0: it is there."""
    is_measured: bool = False
    """Both sides were measured; else all that is shared is loaded."""


class PlanPrefix(Call[PlanReply], frozen=True):
    model: str
    """Fingerprint: 64 hexadecimal digits."""
    tokens: bytes
    """The prompt's token ids: u32, little endian; of a batch, those that all prompts share."""
    under: str = "/"
    prompt_tokens: int = 0
    """How long the prompt is; 0: as long as `tokens`."""
    rows: int = 1
    """Of the batch."""
    is_prefetched: bool = True
    """Start loading what the plan says at once."""
