"""One layer of a cache over mapped memory: new tokens are written in place, behind the prefix.

Owns one `Room` in memory, a `Region` where a prefix is mapped, and the views of its used rows.
Invariants: `keys` and `values` are always [rows, heads, used, dim] over that memory; the first
`shared_tokens` of them are the stored prefix's, the same in every row, and never written. A write
goes behind the used rows only, so whoever still holds an older view sees what it saw;
`reorder_cache` alone overwrites, and waits for `Readers` first.

Sliding-window layers keep all tokens as well: the mask does the window, so a prefix can be cut
anywhere and extended.

Made by `libmem.hf.cache`.
"""

import copy
import os
from concurrent.futures import Future, wait
from typing import Any, Final, NamedTuple

import torch
from transformers.cache_utils import DynamicLayer

from libmem.abi.errors import Errno, MemError
from libmem.hf.prefix import LayerShape, Prefix
from libmem.hf.region import Region, Room

__all__ = ["HEADROOM_TOKENS", "MappedLayer", "Readers", "Source"]

HEADROOM_TOKENS: Final = 1024
"""Room behind what is used, where nobody said how much: address space, no memory."""
_HEAP_BYTES: Final = 2 << 20
"""A layer without a prefix lies in the heap up to this size, as transformers' own do: the heap has
its pages from before, while a new region pays a page fault, 3 to 5 us, for every 4 KiB that is
written. Above, room that is never written would weigh more than that."""


class Readers:
    """Work in the background that still reads rows of a cache."""

    def __init__(self) -> None:
        self._work: list[Future[Any]] = []
        self._pid = os.getpid()

    def __deepcopy__(self, memo: dict[int, Any]) -> "Readers":
        return Readers()  # nobody reads the copy

    def add(self, work: "Future[Any]") -> None:
        """`work` reads rows until it is done."""
        self._work = [other for other in self._work if not other.done()] + [work]

    def wait(self) -> None:
        """Return when nobody reads any more."""
        if self._work and self._pid == os.getpid():  # a fork has no threads, and memory of its own
            wait(self._work)
        self._work = []


class Source(NamedTuple):
    """What a layer starts with: the first `tokens` tokens of a stored layer, in every row."""

    prefix: Prefix
    layer: int
    tokens: int
    rows: int


class MappedLayer(DynamicLayer):  # its __init_subclass__
    """A `DynamicLayer` that neither copies its prefix nor concatenates. Not thread-safe."""

    keys: torch.Tensor  # None, says the base: before the first token
    values: torch.Tensor

    def __init__(
        self,
        source: Source | None = None,
        *,
        room_tokens: int = HEADROOM_TOKENS,
        window: int = 0,
        readers: Readers | None = None,
    ) -> None:
        """Map `source`, or start empty.

        Units:  room_tokens, for prefix and new tokens together; grows when it is used up.
        Errors: ENOMEM, EINVAL.
        """
        super().__init__()
        self.window = window
        self.shared_tokens = 0
        self.readers = readers or Readers()
        self._source = source
        self._room_tokens = room_tokens
        self._room: Room | None = None
        if source is not None:
            self.dtype = getattr(torch, source.prefix.dtype)
            self.device = torch.device("cpu")
            self.shared_tokens = source.tokens
            self._open(source.prefix.shapes[source.layer], source.rows, room_tokens)
            self._show(source.tokens)
            self.is_initialized = True

    def __deepcopy__(self, memo: dict[int, Any]) -> "MappedLayer":
        """A layer of the same tokens that shares the prefix and goes its own way."""
        twin = copy.copy(self)
        twin.readers = copy.deepcopy(self.readers, memo)
        if self._room is not None:
            twin._move(self._room.room_tokens)
        return twin

    def lazy_initialization(self, key_states: torch.Tensor, value_states: torch.Tensor) -> None:
        rows, heads, _, key_dim = key_states.shape
        self.dtype, self.device = key_states.dtype, key_states.device
        if self.device.type != "cpu":
            raise MemError(Errno.EOPNOTSUPP, f"memory on {self.device} cannot be mapped")
        self._source, self.shared_tokens = None, 0
        shape = LayerShape(heads, key_dim, value_states.shape[-1], self.dtype.itemsize)
        self._open(shape, rows, self._room_tokens)
        self._show(0)
        self.is_initialized = True

    def update(
        self, key_states: torch.Tensor, value_states: torch.Tensor, *args: Any, **kwargs: Any
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Write new tokens behind the used ones, and return all.

        Shape:  both [rows, heads, new tokens, dim]; the result [rows, heads, all tokens, dim].
        Errors: EINVAL (other rows, heads or dtype), EOPNOTSUPP (with gradients), ENOMEM.
        """
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
        self._check(key_states, value_states)
        used, new = self.get_seq_length(), key_states.shape[-2]
        if used + new > self._opened().room_tokens:
            self._move(used + new + max(HEADROOM_TOKENS, used // 2))
        keys, values = self._views(used + new)
        with torch.no_grad():
            keys.narrow(2, used, new).copy_(key_states)
            values.narrow(2, used, new).copy_(value_states)
        self.keys, self.values = keys, values
        return keys, values

    def get_seq_length(self) -> int:
        return self.keys.shape[-2] if self.is_initialized else 0

    def crop(self, tokens_to_remove: int) -> None:
        """Forget the last tokens; the argument is negative, as transformers asks for it."""
        if tokens_to_remove > 0:
            super().crop(tokens_to_remove)  # refuses it, in its own words
        if tokens_to_remove == 0 or not self.is_initialized:
            return
        self.readers.wait()  # what comes next is written over what is forgotten now
        self._show(max(0, self.get_seq_length() + tokens_to_remove))
        self.shared_tokens = min(self.shared_tokens, self.get_seq_length())

    def reorder_cache(self, beam_idx: torch.LongTensor) -> None:
        """Give each row the tokens of another; only those behind the shared prefix move."""
        if self.get_seq_length() == 0:
            return
        index = beam_idx.to("cpu")
        rows = self.keys.shape[0]
        if len(index) != rows:
            self._move(self._opened().room_tokens, index)
            return
        changed = (index != torch.arange(rows)).nonzero().flatten()
        if len(changed) == 0:
            return
        self.readers.wait()
        with torch.no_grad():
            for states in (self.keys, self.values):
                behind = states[:, :, self.shared_tokens :]
                behind.index_copy_(0, changed, behind.index_select(0, index[changed]))

    def batch_repeat_interleave(self, repeats: int) -> None:
        """Each row `repeats` times, one after another; the prefix stays one."""
        if self.get_seq_length() > 0:
            rows = torch.arange(self.keys.shape[0])
            self._move(self._opened().room_tokens, rows.repeat_interleave(repeats))

    def batch_select_indices(self, indices: torch.Tensor) -> None:
        """Keep some rows, in this order."""
        if self.get_seq_length() > 0:
            rows = torch.arange(self.keys.shape[0])
            self._move(self._opened().room_tokens, rows[indices.to("cpu")])

    def reset(self) -> None:
        """Forget everything, the prefix too."""
        super().reset()
        self._room = self._source = None
        self._memory = torch.empty(0)
        self.shared_tokens = 0

    def offload(self) -> None:
        raise MemError(Errno.EOPNOTSUPP, "a mapped cache is in the memory of the CPU already")

    def prefetch(self) -> None:
        raise MemError(Errno.EOPNOTSUPP, "a mapped cache stays in the memory of the CPU")

    def _opened(self) -> Room:
        if self._room is None:
            raise MemError(Errno.EINVAL, "this layer holds nothing yet")
        return self._room

    def _check(self, key_states: torch.Tensor, value_states: torch.Tensor) -> None:
        if torch.is_grad_enabled() and (key_states.requires_grad or value_states.requires_grad):
            raise MemError(
                Errno.EOPNOTSUPP,
                "a mapped cache keeps values, not gradients: call the model under torch.no_grad()",
            )
        room = self._opened()
        heads, key_dim, value_dim, _ = room.shape
        for new, dim in ((key_states, key_dim), (value_states, value_dim)):
            expected = (room.rows, heads, new.shape[-2], dim)
            if new.shape != expected or new.dtype != self.dtype:
                raise MemError(
                    Errno.EINVAL,
                    f"this cache takes {expected} of {self.dtype}, "
                    f"not {tuple(new.shape)} of {new.dtype}; rows= says how many rows to map",
                )

    def _open(self, shape: LayerShape, rows: int, room_tokens: int) -> None:
        """New memory with the shared prefix in it. The old one lives as long as its views."""
        grain = 1 if self._source is None else self._source.prefix.grain_tokens
        room_tokens = -(-max(room_tokens, self.shared_tokens, 1) // grain) * grain
        room = Room(shape, rows, room_tokens)
        # Tensors made in inference mode could not be written to outside of it.
        with torch.inference_mode(False):
            in_heap = self._source is None and room.size_bytes <= _HEAP_BYTES
            self._memory = self._in_heap(room) if in_heap else self._mapped(room)
        self._room = room

    def _in_heap(self, room: Room) -> torch.Tensor:
        try:
            return torch.empty(room.size_bytes // room.shape.item_bytes, dtype=self.dtype)
        except RuntimeError as error:
            text = f"no memory for {room.room_tokens} tokens of {room.rows} rows: {error}"
            raise MemError(Errno.ENOMEM, text, need_bytes=room.size_bytes) from None

    def _mapped(self, room: Room) -> torch.Tensor:
        """Address space of its own, in which the shared prefix is mapped."""
        region = Region(room.shape, room.rows, room.room_tokens)
        if self._source is not None and self.shared_tokens:
            region.place(self._source.prefix, self._source.layer, self.shared_tokens)
        items = room.size_bytes // room.shape.item_bytes
        return torch.frombuffer(region, dtype=self.dtype, count=items)

    def _show(self, used: int) -> None:
        self.keys, self.values = self._views(used)

    def _views(self, used: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Keys and values of the first `used` tokens."""
        room = self._opened()
        heads, key_dim, value_dim, item_bytes = room.shape

        def first(dim: int, start: int) -> torch.Tensor:
            pitch = room.room_tokens * dim
            shape = (room.rows, heads, used, dim)
            return self._memory.as_strided(shape, (heads * pitch, pitch, dim, 1), start)

        return first(key_dim, 0), first(value_dim, room.values_offset_bytes // item_bytes)

    def _move(self, room_tokens: int, index: torch.Tensor | None = None) -> None:
        """To a new region of other room or rows: the prefix is mapped again, the rest copied."""
        keys, values, used = self.keys, self.values, self.get_seq_length()
        rows = keys.shape[0] if index is None else len(index)
        self._open(self._opened().shape, rows, room_tokens)
        self._show(used)
        shared = self.shared_tokens
        with torch.no_grad():
            for old, new in ((keys, self.keys), (values, self.values)):
                behind = old[:, :, shared:]
                moved = behind if index is None else behind.index_select(0, index)
                new[:, :, shared:].copy_(moved)
