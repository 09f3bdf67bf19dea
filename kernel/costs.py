"""Costs: what moving and computing take, as it was measured.

Owns one fit for each way a payload moves (tier, load or store, form) and for each model and user a
fit of its prefills, as that user's clients report them, and one of mapping what is in RAM. Where
nothing was measured there are guesses, and `is_measured` says so. Kept over restarts: rows of
`costs` follow every few seconds, like heat; a damaged one starts anew.

Nobody's reports count for others: what a model's prefill takes for one user is what that user
reported; who reported nothing is answered by the median of the others, marked as borrowed: where
few report, one user moves it.
Kernel thread only; transfers are timed where they happen, on I/O threads, so that the time a
transfer waited for its thread is no part of what the tier takes.
"""

import statistics
from collections.abc import Callable, Iterator
from functools import wraps
from typing import Any, Final, NamedTuple, TypeVar

import structlog

from libmem.abi.costs import CostStat, PrefillSample
from libmem.abi.errors import MemError
from memosd.kernel.fits import Fit
from memosd.kernel.ledger import Ledger
from memosd.kernel.ports import Clock, Io, Store
from memosd.kernel.rows import CostRow, decode_row, encode_row

__all__ = ["COPY", "Costs", "Estimate", "Transfer"]

_log = structlog.get_logger("memosd.kernel")
T = TypeVar("T")

_TRANSFER_PRIOR: Final = (1e-3, 1 / 500e6)
"""A modest SSD, hashing included: a millisecond, and 500 MB a second."""
_PREFILL_PRIOR: Final = (1e-2, 1e-3, 1e-7)
"""A small model on a processor: 10 ms, a ms for each token, 0.1 us for each pair of tokens."""
_MAP_PRIOR: Final = (4e-3,)
_FITS_PER_USER: Final = 64
_FITS: Final = 1024
"""Fits of prefills in all; the one that was fed longest ago goes."""
_SAMPLES_AT_ONCE: Final = 256
_SAMPLES_PER_S: Final = 16.0
"""Of one user: many processes on one machine, none of which floods the others' out."""
_MOVED: Final = 2.0
"""An estimate that moved by more is told of."""
_PROBE_NS: Final = 30_000_000_000
_SHOWN_BYTES: Final = 16 << 20
_SHOWN_TOKENS: Final = 1024
"""Of what size people are shown an estimate."""


class Transfer(NamedTuple):
    """A way in which payloads move."""

    tier: str
    operation: str
    """load or store"""
    is_encoded: bool = False
    """In another form than in RAM, so that it is encoded or decoded on its way."""


COPY: Final = Transfer("device", "load")
"""From RAM to the device."""


class Estimate(NamedTuple):
    """What something will take."""

    seconds: float
    is_measured: bool
    is_borrowed: bool = False
    """Measured by other users only: good for an answer, decides nothing about what one owns."""


class _Prefill(NamedTuple):
    """Whose prefills, of which model."""

    model: bytes
    uid: int


class _Known:
    """A fit, and what was told of it last."""

    __slots__ = ("fit", "probed_ns", "told")

    def __init__(self, fit: Fit) -> None:
        self.fit = fit
        self.told = 0.0
        self.probed_ns = 0


class Costs:
    """See the head of this file."""

    def __init__(self, ledger: Ledger, store: Store, clock: Clock, io_threads: int) -> None:
        self._ledger = ledger
        self._clock = clock
        self._io_threads = io_threads
        self._transfers: dict[Transfer, _Known] = {}
        self._prefills: dict[_Prefill, _Known] = {}
        """The one fed longest ago first."""
        self._maps: dict[_Prefill, _Known] = {}
        self._allowed: dict[int, tuple[float, int]] = {}
        """uid -> how many samples may come at once, and since when"""
        self._waiting: list[float] = []
        """What each transfer that is under way, or waits for a thread, will take."""
        self._dirty: dict[bytes, Fit] = {}
        self._gone: set[bytes] = set()
        self.on_moved: Callable[[], None] = _nobody_asks
        """Set at assembly: an estimate is far from what it was."""
        for key, value in store.scan("costs", b""):
            self._restore(key, value)

    # -- transfers -----------------------------------------------------------------------------

    async def timed(
        self, transfer: Transfer, size_bytes: int, io: Io, work: Callable[..., T], *args: Any
    ) -> T:
        """Run `work(*args)` on an I/O thread, and learn what it took. Errors: those of `work`."""
        took_ns: list[int] = []
        clock = self._clock

        @wraps(work)
        def measure(*args: Any) -> T:
            begun_ns = clock.monotonic_ns()
            value = work(*args)
            took_ns.append(clock.monotonic_ns() - begun_ns)
            return value

        expected_s = self.transfer(transfer, size_bytes).seconds
        self._waiting.append(expected_s)
        try:
            value = await io.run(measure, *args)
        finally:
            self._waiting.remove(expected_s)
        self.observe(transfer, size_bytes, took_ns[0] / 1e9)
        return value

    def observe(self, transfer: Transfer, size_bytes: int, seconds: float) -> None:
        """A transfer of so many bytes, as they are in RAM, took so long."""
        known = self._transfers.get(transfer)
        if known is None:
            known = self._transfers[transfer] = _Known(Fit(_TRANSFER_PRIOR, returns=True))
        self._feed(_transfer_key(transfer), known, (1.0, float(size_bytes)), seconds)

    def transfer(self, transfer: Transfer, size_bytes: int) -> Estimate:
        """What it takes to move a payload of a size, without waiting for others."""
        known = self._transfers.get(transfer)
        features = (1.0, float(size_bytes))
        if known is None:
            return Estimate(_guess(_TRANSFER_PRIOR, features), is_measured=False)
        seconds = known.fit.seconds(features, self._clock.wall_ns())
        return Estimate(seconds, known.fit.is_measured)

    def may_probe(self, transfer: Transfer) -> bool:
        """Is it time to look whether a transfer still takes what it took? Said once in a while.

        What is known to be slow is avoided, so nothing would tell that it is quick again.
        """
        now_ns = self._clock.wall_ns()
        known = self._transfers.get(transfer)
        if known is None or now_ns - known.fit.row.observed_ns < _PROBE_NS:
            return False
        if now_ns - known.probed_ns < _PROBE_NS:
            return False
        known.probed_ns = now_ns
        return True

    @property
    def queue_s(self) -> float:
        """How long a transfer waits until a thread takes it up."""
        if len(self._waiting) < self._io_threads:
            return 0.0
        return sum(self._waiting) / self._io_threads

    # -- prefills ------------------------------------------------------------------------------

    def report(self, model: bytes, uid: int, sample: PrefillSample) -> None:
        """Take a user's word for a prefill; it was checked for sense."""
        whose = _Prefill(model, uid)
        if sample.seconds:
            known = self._known(self._prefills, b"prefill", whose, _PREFILL_PRIOR)
            features = _prefill_features(sample.tokens, sample.cached_tokens, sample.rows)
            self._feed(_user_key(b"prefill", whose), known, features, sample.seconds)
        if sample.map_s:
            known = self._known(self._maps, b"map", whose, _MAP_PRIOR)
            self._feed(_user_key(b"map", whose), known, (1.0,), sample.map_s)

    def allowance(self, uid: int, samples: int) -> int:
        """How many samples of a user may count now; takes them off."""
        now_ns = self._clock.monotonic_ns()
        left, since_ns = self._allowed.pop(uid, (float(_SAMPLES_AT_ONCE), now_ns))
        left = min(_SAMPLES_AT_ONCE, left + (now_ns - since_ns) / 1e9 * _SAMPLES_PER_S)
        taken = min(samples, int(left))
        if len(self._allowed) >= _FITS:
            del self._allowed[next(iter(self._allowed))]
        self._allowed[uid] = (left - taken, now_ns)
        return taken

    def prefill(
        self, model: bytes, uid: int, tokens: int, cached_tokens: int = 0, rows: int = 1
    ) -> Estimate:
        """What a user's machine takes to compute `tokens` tokens behind `cached_tokens`."""
        features = _prefill_features(tokens, cached_tokens, rows)
        return self._of_user(self._prefills, _Prefill(model, uid), _PREFILL_PRIOR, features)

    def mapping(self, model: bytes, uid: int) -> Estimate:
        """What a user's client takes to map a prefix that is in RAM."""
        return self._of_user(self._maps, _Prefill(model, uid), _MAP_PRIOR, (1.0,))

    def _of_user(
        self,
        among: dict[_Prefill, _Known],
        whose: _Prefill,
        prior: tuple[float, ...],
        features: tuple[float, ...],
    ) -> Estimate:
        now_ns = self._clock.wall_ns()
        own = among.get(whose)
        if own is not None and own.fit.is_measured:
            return Estimate(own.fit.seconds(features, now_ns), is_measured=True)
        others = [
            known.fit.seconds(features, now_ns)
            for (model, _), known in among.items()
            if model == whose.model and known.fit.is_measured
        ]
        if others:
            return Estimate(statistics.median_low(others), is_measured=True, is_borrowed=True)
        if own is not None:
            return Estimate(own.fit.seconds(features, now_ns), is_measured=False)
        return Estimate(_guess(prior, features), is_measured=False)

    def _known(
        self,
        among: dict[_Prefill, _Known],
        kind: bytes,
        whose: _Prefill,
        prior: tuple[float, ...],
    ) -> _Known:
        known = among.pop(whose, None)
        if known is None:
            known = _Known(Fit(prior, returns=False))
            of_user = [each for each in among if each.uid == whose.uid]
            if len(of_user) >= _FITS_PER_USER:
                self._drop(among, kind, of_user[0])
            elif len(among) >= _FITS:
                self._drop(among, kind, next(iter(among)))
        among[whose] = known  # the latest
        return known

    def _drop(self, among: dict[_Prefill, _Known], kind: bytes, whose: _Prefill) -> None:
        del among[whose]
        key = _user_key(kind, whose)
        self._dirty.pop(key, None)
        self._gone.add(key)

    def _feed(self, key: bytes, known: _Known, features: tuple[float, ...], seconds: float) -> None:
        now_ns = self._clock.wall_ns()
        known.fit.observe(features, seconds, now_ns)
        self._dirty[key] = known.fit
        self._gone.discard(key)
        if not known.fit.is_measured:
            return
        estimate = known.fit.seconds(features, now_ns)
        # Told per unit of its guess: sizes differ from one measurement to the next.
        moved = estimate / max(known.fit.guess(features), 1e-12)
        if known.told and 1 / _MOVED <= moved / known.told <= _MOVED:
            return
        known.told = moved
        self.on_moved()

    # -- rows ----------------------------------------------------------------------------------

    def write_back(self) -> None:
        """Put what changed into the next commit."""
        for key in self._gone:
            self._ledger.delete("costs", key)
        for key, fit in self._dirty.items():
            self._ledger.put("costs", key, encode_row(key, fit.row))
        self._gone.clear()
        self._dirty.clear()

    def _restore(self, key: bytes, value: bytes) -> None:
        try:
            row = decode_row(CostRow, "costs", key, value)
            kind, _, rest = key.partition(b"/")
            if kind in (b"prefill", b"map"):
                whose = _Prefill(rest[:-4], int.from_bytes(rest[-4:], "big"))
                is_prefill = kind == b"prefill"
                among = self._prefills if is_prefill else self._maps
                prior = _PREFILL_PRIOR if is_prefill else _MAP_PRIOR
                among[whose] = _Known(Fit(prior, returns=False, row=row))
            else:
                tier, operation, form = key.decode().split("/")
                fit = Fit(_TRANSFER_PRIOR, returns=True, row=row)
                self._transfers[Transfer(tier, operation, form == "encoded")] = _Known(fit)
        except (MemError, ValueError) as error:
            _log.warning("a cost is measured anew", row=key.hex(), error=str(error))

    # -- about itself --------------------------------------------------------------------------

    def stats(self, uid: int, *, is_admin: bool) -> Iterator[CostStat]:
        """What is known, of prefills the user's own; for the administrator all of them."""
        for transfer, known in self._transfers.items():
            small, large = (
                self.transfer(transfer, size_bytes).seconds for size_bytes in (0, _SHOWN_BYTES)
            )
            form = " encoded" if transfer.is_encoded else ""
            name = f"{transfer.tier} {transfer.operation}{form}"
            slope = max((large - small) / _SHOWN_BYTES, 1e-15)
            yield _stat(name, known, latency_s=small, bytes_per_s=1.0 / slope)
        for kind, among in (("prefill", self._prefills), ("map", self._maps)):
            for whose, known in among.items():
                if not (is_admin or whose.uid == uid):
                    continue
                features = _prefill_features(_SHOWN_TOKENS, 0, 1) if kind == "prefill" else (1.0,)
                seconds = known.fit.seconds(features, self._clock.wall_ns())
                rate = _SHOWN_TOKENS / seconds if kind == "prefill" and seconds else 0.0
                yield _stat(
                    kind, known, latency_s=0.0 if rate else seconds, tokens_per_s=rate,
                    model=whose.model.hex(), uid=whose.uid,
                )  # fmt: skip


def _stat(name: str, known: _Known, **numbers: Any) -> CostStat:
    row = known.fit.row
    return CostStat(
        name=name,
        is_measured=known.fit.is_measured,
        samples=row.samples,
        measured_ns=row.observed_ns,
        **numbers,
    )


def _prefill_features(tokens: int, cached_tokens: int, rows: int) -> tuple[float, ...]:
    """A constant, tokens, and the pairs of tokens that attend to each other."""
    pairs = tokens * (cached_tokens + (tokens + 1) / 2)
    return 1.0, float(rows * tokens), rows * pairs


def _guess(prior: tuple[float, ...], features: tuple[float, ...]) -> float:
    return sum(p * x for p, x in zip(prior, features, strict=True))


def _transfer_key(transfer: Transfer) -> bytes:
    form = "encoded" if transfer.is_encoded else "exact"
    return f"{transfer.tier}/{transfer.operation}/{form}".encode()


def _user_key(kind: bytes, whose: _Prefill) -> bytes:
    return kind + b"/" + whose.model + whose.uid.to_bytes(4, "big")


def _nobody_asks() -> None:
    """Until the kernel is put together."""
