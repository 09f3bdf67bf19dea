"""Traces that are made: the kinds of load that policies are known to fall for. All are fixed by
their seeds."""

import random
from collections.abc import Callable, Iterable
from typing import Final

from memosd.kernel.policies.policy import Entry
from memosd.kernel.ports import PayloadKey
from memosd.tools.bench.traces import Request, block_key

__all__ = ["SYNTHETIC"]

_ACCESSES: Final = 40_000


class _Blocks:
    """Names to entries, made once."""

    def __init__(self) -> None:
        self._known: dict[str, Entry] = {}

    def request(
        self, at: int, names: Iterable[str], *, size_bytes: int = 1, restore_s: float = 0.0
    ) -> Request:
        blocks: list[Entry] = []
        parent: PayloadKey = b""
        for name in names:
            entry = self._known.get(name)
            if entry is None:
                entry = Entry(block_key(name), size_bytes, parent=parent, restore_s=restore_s)
                self._known[name] = entry
            blocks.append(entry)
            parent = entry.key
        return Request(float(at), tuple(blocks))


def _singles(names: Iterable[object]) -> list[Request]:
    blocks = _Blocks()
    return [blocks.request(at, (str(name),)) for at, name in enumerate(names)]


def _zipf(skew: float, count: int = 10_000) -> list[Request]:
    weights = [1 / rank**skew for rank in range(1, count + 1)]
    return _singles(random.Random(1).choices(range(count), weights, k=_ACCESSES))


def _shifting() -> list[Request]:
    """A working set that moves on."""
    draw = random.Random(2)
    return _singles(at // 8 + int(draw.expovariate(1 / 200)) for at in range(_ACCESSES))


def _loop() -> list[Request]:
    return _singles(at % 4000 for at in range(_ACCESSES))


def _scan() -> list[Request]:
    """Hot ones, and now and then a long row of those that never come back."""
    draw = random.Random(3)
    return _singles(
        f"scan {at}" if at % 4000 < 2000 else int(draw.paretovariate(0.8)) % 2000
        for at in range(_ACCESSES)
    )


def _recent() -> list[Request]:
    """Friendly to LRU: what was used last is used again."""
    draw = random.Random(4)
    stack: list[int] = []
    names = []
    for at in range(_ACCESSES):
        depth = int(draw.lognormvariate(4.5, 1.8))
        name = stack.pop(-1 - depth) if depth < len(stack) else at
        stack.append(name)
        names.append(name)
    return _singles(names)


def _wonders() -> list[Request]:
    """Seven in ten are asked for once."""
    draw = random.Random(5)
    return _singles(
        f"once {at}" if draw.random() < 0.7 else int(draw.paretovariate(0.6)) % 3000
        for at in range(_ACCESSES)
    )


def _chats() -> list[Request]:
    """Conversations whose every turn brings all before it."""
    draw = random.Random(6)
    blocks = _Blocks()
    chats: list[tuple[int, int]] = []
    requests = []
    for at in range(5000):
        if chats and draw.random() < 0.7:
            chat, length = chats.pop(-1 - min(int(draw.expovariate(1 / 30)), len(chats) - 1))
        else:
            chat, length = at, 0
        length += draw.randint(1, 6)
        requests.append(blocks.request(at, (f"{chat}/{each}" for each in range(length))))
        if draw.random() < 0.85:
            chats.append((chat, length))
    return requests


def _shared() -> list[Request]:
    """Few system prompts, each with tails that nobody asks for again."""
    draw = random.Random(7)
    blocks = _Blocks()
    requests = []
    for at in range(5000):
        prompt = min(int(draw.paretovariate(0.7)), 300)
        names = [f"{prompt}/{each}" for each in range(6)]
        names += [f"{prompt}/6/{at}/{each}" for each in range(4)]
        requests.append(blocks.request(at, names))
    return requests


def _mixed() -> list[Request]:
    """Sizes and costs over two orders."""
    draw = random.Random(8)
    known = [(draw.choice((1, 4, 16, 64)) << 10, 10 ** draw.uniform(-4, -2)) for _ in range(5000)]
    blocks = _Blocks()
    weights = [1 / rank**0.8 for rank in range(1, len(known) + 1)]
    requests = []
    for at, number in enumerate(draw.choices(range(len(known)), weights, k=_ACCESSES)):
        size_bytes, restore_s = known[number]
        names = (str(number),)
        requests.append(blocks.request(at, names, size_bytes=size_bytes, restore_s=restore_s))
    return requests


SYNTHETIC: Final[dict[str, Callable[[], list[Request]]]] = {
    "zipf-light": lambda: _zipf(0.6),
    "zipf-medium": lambda: _zipf(0.9),
    "zipf-steep": lambda: _zipf(1.2),
    "shifting": _shifting,
    "loop": _loop,
    "scan": _scan,
    "recent": _recent,
    "wonders": _wonders,
    "chats": _chats,
    "shared": _shared,
    "mixed": _mixed,
}
