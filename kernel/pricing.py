"""Pricing: what the cost model says of payloads. It decides nothing that is not about time.

What it would take to be without a payload (`Entry.restore_s`), whether one is worth its room on
disk, and for a prompt how much of a stored prefix is quicker loaded than computed. Cut points are
the cubes that a cube stands on: of one cube all is loaded or nothing, because its heads lie one
behind the other and it is verified by the page (docs/design/0008-scheduler.md, 3). Guesses never
make anybody lose or compute what lies stored: where nothing was measured, all is kept and loaded.
Kernel thread only.
"""

from collections.abc import Callable, Iterator
from typing import Final, NamedTuple

from libmem.abi.calls import PlanReply
from libmem.abi.errors import MemError
from memosd.kernel.costs import COPY, Estimate, Transfer
from memosd.kernel.pagetable import Cube
from memosd.kernel.parts import Parts
from memosd.kernel.ports import PayloadKey
from memosd.kernel.prefixes import Match
from memosd.kernel.residents import Resident, Residents

__all__ = ["Plan", "Prompt", "Repricing", "is_worth_storing", "plan", "restore_s", "worth_prefetch"]

_STRETCH: Final = 256
"""Payloads priced anew before others have their turn: a few ms."""
_MOVED: Final = 2.0
"""A price that changed by less stays."""


class Prompt(NamedTuple):
    """What is to be computed, for whom."""

    model: bytes
    uid: int
    tokens: int
    rows: int


class Plan(NamedTuple):
    """How to begin a prompt."""

    reply: PlanReply
    wanted: Cube | None
    """What will be mapped, and is to be loaded with what it stands on; None: it is in RAM."""
    probe: Cube | None
    """What to load to see how the disk is; at most one in a while."""


class _Cut(NamedTuple):
    """A way to begin: map `tokens` tokens of a cube, compute what is behind them."""

    tokens: int
    name: str
    absent: list[Cube]
    """Of its parts those that are not in RAM."""
    fault_s: float
    seconds: float
    is_measured: bool


def _load(parts: Parts, key: PayloadKey, size_bytes: int) -> Estimate:
    """What it takes to bring a payload in from disk."""
    return parts.costs.transfer(_loading(parts, key), size_bytes)


def _loading(parts: Parts, key: PayloadKey) -> Transfer:
    return Transfer("disk", "load", parts.table.stored_form(key) is not None)


def _queue_s(parts: Parts) -> float:
    """How long a transfer waits for its turn, and then for a thread."""
    waiting_bytes = parts.turns.waiting_bytes
    turns_s = (
        parts.costs.transfer(Transfer("disk", "load"), waiting_bytes).seconds
        if waiting_bytes
        else 0.0
    )
    return turns_s / parts.parameters.io_threads + parts.costs.queue_s


def _compute(parts: Parts, cube_id: bytes, key: PayloadKey) -> Estimate | None:
    """What its owner's machine takes to compute a payload again; None: it is nothing computed.

    What only others measured counts as a guess: a liar among them would have it lost.
    """
    span = parts.prefixes.span(key)
    row = parts.table.cube_row(cube_id)
    if span is None or row is None:
        return None
    took = parts.costs.prefill(span.model, row.uid, span.end - span.start, span.start)
    return took._replace(is_measured=took.is_measured and not took.is_borrowed)


def restore_s(parts: Parts, resident: Resident) -> float:
    """What it would take to have it back in its tier, were it reclaimed: the quicker way.

    On the device from RAM, where most of what is used there is kept as well.
    """
    if parts.on_device.find(resident.key) is resident:
        return parts.costs.transfer(COPY, resident.frame.size_bytes).seconds
    load = _load(parts, resident.key, resident.frame.size_bytes).seconds
    try:
        compute = _compute(parts, resident.cube_id, resident.key)
    except MemError:
        return load
    return load if compute is None or not compute.is_measured else min(load, compute.seconds)


def is_worth_storing(parts: Parts, resident: Resident) -> bool:
    """Is a cache payload cheaper to keep on disk than to compute again?

    Yes where that was not measured, and where others stand on it: they would go with it.
    """
    try:
        compute = _compute(parts, resident.cube_id, resident.key)
    except MemError:
        return True
    if compute is None or not compute.is_measured or parts.prefixes.is_stood_on(resident.key):
        return True
    size_bytes, is_encoded = resident.frame.size_bytes, resident.coding is not None
    store = parts.costs.transfer(Transfer("disk", "store", is_encoded), size_bytes)
    load = parts.costs.transfer(Transfer("disk", "load", is_encoded), size_bytes)
    if not (store.is_measured and load.is_measured):
        return True
    return store.seconds + load.seconds <= compute.seconds


def worth_prefetch(parts: Parts, cube: Cube, within_s: float | None = None) -> bool:
    """Is it worth loading a cube that may be needed, and will it be there in time?

    `within_s`: when it is needed; None: whenever.
    """
    load = _load(parts, cube.key, cube.version.size_bytes)
    waited_s = _queue_s(parts) + load.seconds
    if within_s is not None and load.is_measured and waited_s > within_s:
        return False
    compute = _compute(parts, cube.id, cube.key)
    if compute is None or not (compute.is_measured and load.is_measured):
        return True
    return load.seconds <= compute.seconds


# -- prompts ---------------------------------------------------------------------------------


def plan(parts: Parts, match: Match, prompt: Prompt, may_show: Callable[[bytes], bool]) -> Plan:
    """How to begin a prompt that shares a prefix, and what is to be loaded for it.

    Where all is computed, now and then the smallest cube that is not: beside the computing, where
    nobody waits for it, that tells whether the disk is as slow as it was.

    Errors: ECORRUPT, ENOENT (a part is damaged or gone).
    """
    compute = parts.costs.prefill(prompt.model, prompt.uid, prompt.tokens, 0, prompt.rows)
    cuts = list(_cuts(parts, match, prompt, may_show))
    whole = cuts[-1]
    is_measured = compute.is_measured and all(cut.is_measured for cut in cuts)
    best = min(reversed(cuts), key=lambda cut: cut.seconds) if is_measured else whole
    is_loaded = not is_measured or best.seconds <= compute.seconds
    found = PlanReply(
        name=whole.name,
        tokens=match.tokens,
        cube_tokens=parts.prefixes.tokens_of(match.key),
        load_name=best.name if is_loaded else "",
        load_tokens=best.tokens if is_loaded else 0,
        plan_s=best.seconds if is_loaded else compute.seconds,
        load_s=whole.seconds,
        compute_s=compute.seconds,
        fault_s=best.fault_s if is_loaded else 0.0,
        is_measured=is_measured,
    )
    if is_loaded and best.absent:
        return Plan(found, best.absent[-1], None)
    return Plan(found, None, _probe(parts, whole.absent))


def _probe(parts: Parts, absent: list[Cube]) -> Cube | None:
    """What to load to see how the disk is."""
    if not absent:
        return None
    smallest = min(absent, key=lambda cube: cube.version.size_bytes)
    return smallest if parts.costs.may_probe(_loading(parts, smallest.key)) else None


def _cuts(
    parts: Parts, match: Match, prompt: Prompt, may_show: Callable[[bytes], bool]
) -> Iterator[_Cut]:
    """The ways to load anything at all, less first; the last loads all that is shared."""
    chain = [parts.prefixes.version_of(match.key), *parts.prefixes.bases(match.key)][::-1]
    # Each part holds what is in front of the next one's first token.
    ends = [parts.prefixes.start_of(cube.key) for cube in chain[1:]]
    absent: list[Cube] = []
    fault_s, is_measured = 0.0, True
    for cube, end in zip(chain, [*ends, match.tokens], strict=True):
        if parts.residents.find(cube.key) is None:
            load = _load(parts, cube.key, cube.version.size_bytes)
            fault_s += load.seconds if absent else load.seconds + _queue_s(parts)
            is_measured = is_measured and load.is_measured
            absent = [*absent, cube]
        is_last = cube is chain[-1]
        if not (is_last or may_show(cube.id)):
            continue
        tokens = min(end, match.tokens)
        yield _Cut(
            tokens,
            f"{cube.row.name}@v{cube.version.version}",
            absent,
            fault_s,
            fault_s + _from_ram(parts, prompt, tokens),
            is_measured,
        )


def _from_ram(parts: Parts, prompt: Prompt, tokens: int) -> float:
    """To the first token, with so many in RAM: the last one's logits are always computed."""
    mapped = min(tokens, prompt.tokens - 1)
    rest = parts.costs.prefill(
        prompt.model, prompt.uid, prompt.tokens - mapped, mapped, prompt.rows
    )
    return parts.costs.mapping(prompt.model, prompt.uid).seconds + rest.seconds


# -- prices ----------------------------------------------------------------------------------


class Repricing:
    """Tells the policy what estimates that moved mean for the payloads in RAM and on the
    device, by and by."""

    def __init__(self, parts: Parts) -> None:
        self._parts = parts
        self._left: Iterator[tuple[Residents, Resident]] | None = None
        self._is_stale = False
        parts.costs.on_moved = self.start

    def start(self) -> None:
        """Price all residents anew; once more where that is under way already."""
        self._is_stale = True
        if self._left is None:
            self._next()

    def _next(self) -> None:
        parts = self._parts
        if self._left is None:
            if not self._is_stale:
                return
            tiers = (parts.residents, parts.on_device)
            self._is_stale, self._left = False, ((tier, each) for tier in tiers for each in tier)
        for _ in range(_STRETCH):
            priced = next(self._left, None)
            if priced is None:
                self._left = None
                break
            tier, resident = priced
            if tier.find(resident.key) is resident:
                self._price(tier, resident)
        if self._left is not None or self._is_stale:
            parts.timers.after(0, self._next)

    def _price(self, tier: Residents, resident: Resident) -> None:
        before, now = resident.restore_s, restore_s(self._parts, resident)
        if before == 0.0 or not 1 / _MOVED <= now / before <= _MOVED:
            tier.reprice(resident, now)
