"""Where `attach` keeps prefixes: one namespace, whose it is, and a daemon that may be away.

Owns the session that stores, apart from the caller's so that nobody waits for a payload, and the
patience with the daemon. Invariants: nothing is taken from a namespace that another user owns,
unless the caller trusts it; and a daemon that does not answer is waited for once, then looked for
shortly and ever more rarely until it does.

Made by `libmem.hf.attach`.
"""

import os
import time
from enum import StrEnum
from typing import Final, TypedDict, TypeVar

from blake3 import blake3
from msgspec.structs import replace

from libmem.abi.calls import (
    Call,
    FindPrefix,
    MakeNamespace,
    PlanPrefix,
    PlanReply,
    ReportPrefill,
    StatNamespace,
    UnlinkCube,
)
from libmem.abi.costs import PrefillSample
from libmem.abi.errors import Errno, MemError
from libmem.abi.kv import TOKEN_BYTES
from libmem.abi.names import namespace_of
from libmem.abi.structs import Governance, NamespaceStat, Value
from libmem.hf.cache import KvClient
from libmem.hf.store import Rows, save_rows

__all__ = ["AttachOptions", "Restore", "Shelf"]

R = TypeVar("R", bound=Value)

_ROOT_UID: Final = 0
_WEEK_S: Final = 7 * 24 * 3600.0
_AWAY: Final = {Errno.ECONNREFUSED, Errno.ECONNRESET, Errno.ETIMEDOUT, Errno.ESHUTDOWN}
_PATIENCE_S: Final = 2.0
"""How long a generation waits for an answer: as long as a daemon may take to be restarted."""
_GLANCE_S: Final = 0.2
"""How long one that did not answer is waited for from then on, until it does."""
_PAUSE_FIRST_S: Final = 5.0
"""How long a daemon that did not answer is left alone; each time twice as long."""
_PAUSE_MAX_S: Final = 80.0
_STORING_S: Final = 10.0
"""How long a step of storing waits: nobody waits for it but `detach`, and the process's end."""
_DIGEST_CHARS: Final = 32


class Restore(StrEnum):
    """What to do about a prefix that is stored."""

    QUICKEST = "quickest"
    LOAD = "load"
    COMPUTE = "compute"


class AttachOptions(TypedDict, total=False):
    """What `attach` does otherwise than by itself."""

    namespace: str
    """Where prefixes are looked for and kept; `/kv-UID` where none is given, for the user's own."""
    trust_namespace: bool
    """Use the namespace even though another user owns it, who then decides what the model reads."""
    min_tokens: int
    """Fewer are neither mapped nor stored; 64 where none is given."""
    restore: Restore
    """How a stored prefix comes back: what is quicker by the daemon's cost model, where none is
    given; or always by loading it, or always by computing it."""
    expires_s: float | None
    """How long what is stored lives; a week where none is given, None: for ever."""


class Shelf:
    """The prefixes of one namespace."""

    def __init__(self, client: KvClient, options: AttachOptions) -> None:
        """Errors: EINVAL (no such name or way, or a time that is over already)."""
        self._restore = _way(options.get("restore", Restore.QUICKEST))
        self.name = options.get("namespace", f"/kv-{os.geteuid()}")
        self._namespace = namespace_of(self.name)
        self._is_trusted = options.get("trust_namespace", False)
        self._expires_s = options.get("expires_s", _WEEK_S)
        if self._expires_s is not None and not self._expires_s > 0:
            raise MemError(Errno.EINVAL, f"expires_s is above 0, or None: not {self._expires_s}")
        self.client = client
        self._storing = client.sibling(timeout_s=_STORING_S)
        self._away_until = 0.0
        self._pause_s = 0.0
        """0: it answered when it was last asked."""

    @property
    def is_away(self) -> bool:
        """The daemon did not answer a while ago: better not to ask again yet."""
        return time.monotonic() < self._away_until

    def failed(self, error: MemError) -> None:
        """Take note of a call that came to nothing."""
        if error.errno in _AWAY and not self.is_away:
            self._pause_s = min(_PAUSE_MAX_S, 2 * self._pause_s or _PAUSE_FIRST_S)
            self._away_until = time.monotonic() + self._pause_s

    def enter(self) -> None:
        """See that the namespace is there, and whose it is.

        Errors: EPERM (another user's, who is not trusted), and the daemon's.
        """
        try:
            found = self._stat()
        except MemError as error:
            if error.errno is not Errno.EACCES or self._is_trusted:
                raise
            text = f"{self._namespace} is another user's, and closed to user {os.geteuid()}"
            raise MemError(Errno.EPERM, text) from None
        if not (self._is_trusted or found.owner_uid in {_ROOT_UID, os.geteuid()}):
            raise MemError(
                Errno.EPERM,
                f"{self._namespace} belongs to user {found.owner_uid}: name another namespace, or "
                "say trust_namespace=True to let that user decide what the model reads",
                uid=found.owner_uid,
            )

    def plan(self, model_digest: str, tokens: bytes, *, prompt_tokens: int, rows: int) -> PlanReply:
        """The longest prefix of packed `tokens`, and how much of it to map. Errors: those of
        `enter`."""
        # Each time: by now the daemon may be another one, with another store.
        self.enter()
        question = PlanPrefix(
            model=model_digest,
            tokens=tokens,
            under=self.name,
            prompt_tokens=prompt_tokens,
            rows=rows,
            is_prefetched=self._restore is Restore.QUICKEST,
        )
        plan = self._ask(self.client, question)
        if self._restore is Restore.LOAD:
            # How much of it loading takes was not asked: nothing is learned of mapping from it.
            return replace(
                plan,
                load_name=plan.name,
                load_tokens=plan.tokens,
                plan_s=plan.load_s,
                fault_s=plan.load_s,
            )
        if self._restore is Restore.COMPUTE:
            return replace(plan, load_name="", load_tokens=0, plan_s=plan.compute_s)
        return plan

    def report(self, model_digest: str, samples: list[PrefillSample]) -> None:
        """Tell the daemon what computing took. Waits for its answer, but not for long."""
        report = ReportPrefill(model=model_digest, samples=tuple(samples))
        self._storing.call(report, timeout_s=_PATIENCE_S)

    def keep(self, rows: Rows, tokens: bytes) -> bool:
        """Store rows; `tokens` are all that they stand for, packed, those of a base included.

        False: another process stored the same. Waits for the disk and the daemon.
        """
        model = rows.header.model
        # Users who share a namespace cannot write over each other's cubes, nor read them.
        folder = f"{self.name}/{model[:_DIGEST_CHARS]}/{os.geteuid()}"
        name = f"{folder}/{blake3(tokens).hexdigest()[:_DIGEST_CHARS]}"
        try:
            self._save(name, rows)
        except MemError as error:
            if error.errno is not Errno.EVERSION:
                raise
        else:
            return True
        found = self._ask(self._storing, self._question(model, tokens))
        if found.tokens * TOKEN_BYTES == len(tokens):
            return False
        # What lies there is damaged, or what it stands on: it would be in the way for ever.
        self._storing.call(UnlinkCube(name))
        self._save(name, rows)
        return True

    def post_released(self) -> None:
        """Give back to the daemon what was dropped. Never waits."""
        self.client.post_released()

    def close(self) -> None:
        """End the session that stores. Idempotent."""
        self._storing.close()

    def _question(self, model_digest: str, tokens: bytes) -> FindPrefix:
        return FindPrefix(model=model_digest, tokens=tokens, under=self.name)

    def _save(self, name: str, rows: Rows) -> None:
        governance = None
        if self._expires_s is not None:
            governance = Governance(expires_ns=time.time_ns() + int(self._expires_s * 1e9))
        save_rows(self._storing, name, rows, expected_version=0, governance=governance)

    def _stat(self) -> NamespaceStat:
        try:
            return self._ask(self.client, StatNamespace(self._namespace))
        except MemError as error:
            if error.errno is not Errno.ENOENT:
                raise
        return self._make()

    def _make(self) -> NamespaceStat:
        try:
            return self._ask(self.client, MakeNamespace(self._namespace))
        except MemError as error:
            if error.errno is not Errno.EEXIST:
                raise
        # By another process, just now.
        return self._ask(self.client, StatNamespace(self._namespace))

    def _ask(self, client: KvClient, request: Call[R]) -> R:
        """One call, with as much patience as the daemon deserves."""
        patience_s = _GLANCE_S if self._pause_s else _PATIENCE_S
        try:
            answer = client.call(request, timeout_s=patience_s)
        except MemError as error:
            if error.errno not in _AWAY:
                self._answered()
            raise
        self._answered()
        return answer

    def _answered(self) -> None:
        self._pause_s = self._away_until = 0.0


def _way(name: str) -> Restore:
    """Errors: EINVAL."""
    try:
        return Restore(name)
    except ValueError:
        raise MemError(
            Errno.EINVAL, f"restore is one of {', '.join(Restore)}: not {name!r}"
        ) from None
