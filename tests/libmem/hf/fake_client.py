"""A client without a daemon: cubes are memfds of this process, sealed as the kernel would."""

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from libmem.abi.calls import (
    FindPrefix,
    PlanPrefix,
    PlanReply,
    PrefixReply,
    ReportPrefill,
    ReportReply,
    StatNamespace,
    UnlinkCube,
    WriteReply,
)
from libmem.abi.costs import PrefillSample
from libmem.abi.errors import Errno, MemError
from libmem.abi.kv import kv_header, layout_of, unpack_tokens
from libmem.abi.structs import Governance, NamespaceStat, Quota, Usage

__all__ = ["FakeClient", "FakeParts", "Held", "held_memory"]


class Held(NamedTuple):
    """What of cubes' memory this process holds."""

    vmas: int
    descriptors: int


def held_memory() -> Held:
    """Counted by the system, without collecting anything first."""
    links = (f"/proc/self/fd/{fd}" for fd in os.listdir("/proc/self/fd"))
    return Held(
        Path("/proc/self/maps").read_text().count("/memfd:fake"),
        sum(os.path.islink(link) and "/memfd:fake" in os.readlink(link) for link in links),
    )


@dataclass
class FakePart:
    fd: int
    id: bytes
    version: int
    size_bytes: int
    attributes: dict[str, Any]


class FakeParts:
    """Descriptors of its own, as `map_parts` hands them out."""

    def __init__(self, client: "FakeClient", name: str, parts: list[FakePart]) -> None:
        self.name, self.parts = name, parts
        self.id, self.version = parts[-1].id, parts[-1].version
        self._client, self._is_over = client, False
        client.leases += 1

    def __del__(self) -> None:
        self.close_descriptors()
        self.give_back()

    def close_descriptors(self) -> None:
        for part in self.parts:
            if part.fd >= 0:
                os.close(part.fd)
                part.fd = -1

    def give_back(self) -> None:
        self._client.leases -= not self._is_over
        self._is_over = True


class FakeFill:
    def __init__(self, client: "FakeClient", name: str, size_bytes: int, options: Any) -> None:
        self._client, self._name, self._options = client, name, options
        self._fd = os.memfd_create("fake", os.MFD_ALLOW_SEALING)
        os.ftruncate(self._fd, size_bytes)

    def copy_in(self, piece: bytes | memoryview, offset_bytes: int = 0) -> None:
        assert offset_bytes + memoryview(piece).nbytes <= os.fstat(self._fd).st_size
        assert os.pwrite(self._fd, piece, offset_bytes) == memoryview(piece).nbytes

    def __enter__(self) -> "FakeFill":
        return self

    def __exit__(self, *error: object) -> None:
        if self._fd >= 0:
            os.close(self._fd)

    def seal(self) -> WriteReply:
        fcntl.fcntl(
            self._fd,
            fcntl.F_ADD_SEALS,
            fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_WRITE,
        )
        fd, self._fd = self._fd, -1
        return self._client.commit(self._name, fd, self._options)


@dataclass
class FakeCube:
    fd: int
    attributes: dict[str, Any]
    parent: str
    size_bytes: int
    governance: Governance | None = None


@dataclass
class FakeSibling:
    origin: "FakeClient"
    is_open: bool = True
    creates: int = 0

    def __getattr__(self, name: str) -> Any:
        assert self.is_open
        return getattr(self.origin, name)

    def create(self, *args: Any, **options: Any) -> Any:
        assert self.is_open
        self.creates += 1
        return self.origin.create(*args, **options)

    def close(self) -> None:
        self.is_open = False


@dataclass
class FakeClient:
    """Implements `libmem.hf.cache.KvClient`; `trouble` is raised by the next calls."""

    cubes: dict[str, FakeCube] = field(default_factory=dict)
    leases: int = 0
    load_max_tokens: int = 1 << 30
    """What it says is quicker loaded than computed."""
    reported: tuple[PrefillSample, ...] = ()
    trouble: MemError | None = None
    owner_uid: int = field(default_factory=os.geteuid)
    """Whose all namespaces are."""
    siblings: list["FakeSibling"] = field(default_factory=list)

    @contextmanager
    def failing(self, errno: Errno) -> Iterator[None]:
        self.trouble = MemError(errno, "as the test wants it")
        try:
            yield
        finally:
            self.trouble = None

    def close(self) -> None:
        for cube in self.cubes.values():
            os.close(cube.fd)
        self.cubes.clear()

    def call(self, request: Any, timeout_s: float | None = None) -> Any:
        self._fail()
        if isinstance(request, FindPrefix):
            return self.find_prefix(request.model, request.tokens, under=request.under)
        if isinstance(request, PlanPrefix):
            return self.plan_prefix(request)
        if isinstance(request, ReportPrefill):
            self.reported += request.samples
            return ReportReply(len(request.samples))
        if isinstance(request, StatNamespace):
            return NamespaceStat(request.name, self.owner_uid, 0, 0o700, 0, Quota(), Usage())
        assert isinstance(request, UnlinkCube)
        os.close(self.cubes.pop(request.name).fd)
        return None

    def sibling(self, timeout_s: float | None = None) -> Any:
        """The same cubes, by another session."""
        self.siblings.append(FakeSibling(self))
        return self.siblings[-1]

    def post_released(self) -> None:
        """Nothing waits: what is dropped is given back at once."""

    def create(self, name: str, size_bytes: int, **options: Any) -> Any:
        self._fail()
        header = kv_header(options["attributes"])
        assert size_bytes == layout_of(header).size_bytes
        assert bool(options["parents"]) == bool(header.start)
        if options.get("expected_version") == 0 and name in self.cubes:
            raise MemError(Errno.EVERSION, "exists")
        return FakeFill(self, name, size_bytes, options)

    def commit(self, name: str, fd: int, options: Any) -> WriteReply:
        parent = options["parents"][0].removesuffix("@v1") if options["parents"] else ""
        size_bytes = os.fstat(fd).st_size
        self.cubes[name] = FakeCube(
            fd, options["attributes"], parent, size_bytes, options["governance"]
        )
        return WriteReply(name.encode(), 1, b"")

    def map_parts(self, name: str, *, model: str = "") -> Any:
        self._fail()
        name = name.removesuffix("@v1")
        if name not in self.cubes:
            raise MemError(Errno.ENOENT, name)
        if model and kv_header(self.cubes[name].attributes).model != model:
            raise MemError(Errno.EMODEL, name)
        parts: list[FakePart] = []
        at = name
        while at:
            cube = self.cubes[at]
            fd = os.dup(cube.fd)
            parts.insert(0, FakePart(fd, at.encode(), 1, cube.size_bytes, dict(cube.attributes)))
            at = cube.parent
        return FakeParts(self, name, parts)

    def tokens_of(self, name: str) -> list[int]:
        cube = self.cubes[name]
        header = kv_header(cube.attributes)
        before = self.tokens_of(cube.parent)[: header.start] if header.start else []
        return before + unpack_tokens(os.pread(cube.fd, (header.tokens - header.start) * 4, 0))

    def find_prefix(self, model: str, tokens: bytes, *, under: str = "/") -> PrefixReply:
        wanted, best = unpack_tokens(tokens), PrefixReply()
        for name, cube in self.cubes.items():
            if kv_header(cube.attributes).model != model or not name.startswith(under):
                continue
            held = self.tokens_of(name)
            pairs = zip(held, wanted, strict=False)
            shared = next((at for at, (a, b) in enumerate(pairs) if a != b), None)
            shared = min(len(held), len(wanted)) if shared is None else shared
            if shared > best.tokens:
                best = PrefixReply(f"{name}@v1", shared, len(held))
        return best

    def plan_prefix(self, request: PlanPrefix) -> PlanReply:
        """All that is found is loaded, unless `load_max_tokens` says less."""
        found = self.find_prefix(request.model, request.tokens, under=request.under)
        tokens = min(found.tokens, self.load_max_tokens)
        return PlanReply(
            name=found.name,
            tokens=found.tokens,
            cube_tokens=found.cube_tokens,
            load_name=found.name if tokens else "",
            load_tokens=tokens,
        )

    def _fail(self) -> None:
        if self.trouble is not None:
            raise self.trouble
