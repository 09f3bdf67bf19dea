"""A transformers cache over mapped memory, and how one is made from a cube.

Owns the way from a cube's name to a cache that `model(...)` and `model.generate(...)` take as
`past_key_values`. Invariant: nobody gets a cache of another model's or another text's rows; the
fingerprint is compared by the daemon and here, the token ids here.

Public through `libmem.hf`.
"""

import weakref
from collections.abc import Mapping
from typing import Protocol, TypedDict, TypeVar, Unpack, cast

import torch
from transformers import DynamicCache, PreTrainedModel
from transformers.cache_utils import Cache

from libmem.abi.calls import Call
from libmem.abi.errors import Errno, MemError
from libmem.abi.structs import Value
from libmem.fill import Fill
from libmem.hf.fingerprint import Identified, identify
from libmem.hf.kinds import windows_of
from libmem.hf.layers import HEADROOM_TOKENS, MappedLayer, Readers, Source
from libmem.hf.prefix import Prefix
from libmem.hf.tokens import TokenIds, ids_of_all
from libmem.options import CubeOptions
from libmem.parts import Parts

__all__ = [
    "CopiedCache",
    "KvClient",
    "MapOptions",
    "MappedCache",
    "is_spread",
    "map_cache",
    "map_prefix",
    "new_cache",
    "refuse_unknown",
]

R = TypeVar("R", bound=Value)


class KvClient(Protocol):
    """What of a client is needed here."""

    def create(self, name: str, size_bytes: int, **options: Unpack[CubeOptions]) -> Fill: ...
    def call(self, request: Call[R], timeout_s: float | None = None) -> R: ...
    def map_parts(self, name: str, *, model: str = "") -> Parts: ...
    def post_released(self) -> None: ...
    def sibling(self, timeout_s: float | None = None) -> "KvClient": ...
    def close(self) -> None: ...


class MapOptions(TypedDict, total=False):
    """How a cube is mapped."""

    tokens: int | None
    """The first so many tokens only; all, where none is given."""
    token_ids: "TokenIds | None"
    """The prompt, or a batch of them: the first `tokens` tokens of each must be those that the cube
    holds."""
    rows: int
    """Rows of the batch, all with this prefix; 1 where none is given."""
    room_tokens: int
    """Prefix and new tokens together; more is reserved when it is used up."""


class MappedCache(Cache):
    """What a process sees of a stored prefix, and its own tokens behind it.

    `copy.deepcopy` gives a second cache that shares the prefix. Dropped, it unmaps.
    """

    def __init__(self, layers: list[MappedLayer], prefix: Prefix | None = None) -> None:
        super().__init__(layers=[*layers])
        self.prefix = prefix
        self.model: weakref.ref[PreTrainedModel] | None = None
        """Whose rows these are."""

    @property
    def shared_tokens(self) -> int:
        """How many of the stored prefix's tokens are still in use: less after a deep `crop`."""
        return min(layer.shared_tokens for layer in self.mapped_layers)

    @property
    def mapped_layers(self) -> list[MappedLayer]:
        """The layers, as what they are."""
        return cast("list[MappedLayer]", self.layers)


class CopiedCache(DynamicCache):
    """The same where the model is not in the CPU's memory: the prefix is a copy on its device."""

    def __init__(self, mapped: MappedCache, device: torch.device) -> None:
        super().__init__()
        self.prefix, self.model = mapped.prefix, mapped.model
        for index, layer in enumerate(mapped.mapped_layers):
            self.update(layer.keys.to(device), layer.values.to(device), index)
        self.shared_tokens = mapped.shared_tokens
        """As `MappedCache.shared_tokens`."""

    def crop(self, tokens_to_remove: int) -> None:
        super().crop(tokens_to_remove)
        self.shared_tokens = min(self.shared_tokens, self.get_seq_length())

    def reset(self) -> None:
        super().reset()
        self.shared_tokens = 0


def is_spread(model: PreTrainedModel) -> bool:
    """Parts of the model are on different devices."""
    placed = getattr(model, "hf_device_map", None) or {}
    return len({str(device) for device in placed.values()}) > 1


def map_cache(
    client: KvClient, name: str, model: PreTrainedModel, **options: Unpack[MapOptions]
) -> Cache:
    """The stored prefix `name` as a cache for `model`: mapped, or copied to an accelerator.

    Errors: ENOENT, EACCES, EMODEL (another model's), EINVAL (other tokens, or too many),
    EOPNOTSUPP (a layer whose cache cannot be stored, a model over several devices), EILSEQ, ENOMEM.
    """
    refuse_unknown("map_cache", MapOptions, options)
    return map_prefix(client, name, identify(model), options)


def map_prefix(client: KvClient, name: str, identified: Identified, options: MapOptions) -> Cache:
    """`map_cache` for who looked at the model just now."""
    model, model_digest = identified
    if options.get("rows", 1) < 1:
        raise MemError(Errno.EINVAL, f"a cache has at least one row, not {options['rows']}")
    if is_spread(model):
        raise MemError(Errno.EOPNOTSUPP, "a model over several devices has no place for a prefix")
    windows = windows_of(model.config)  # refuses what cannot be stored
    parts = client.map_parts(name, model=model_digest)
    try:
        prefix = Prefix(parts, options.get("tokens"))
        if prefix.header.model != model_digest:
            raise MemError(Errno.EMODEL, f"{prefix.name} is of another model")
        if len(windows) != len(prefix.shapes):
            raise MemError(Errno.EILSEQ, f"{prefix.name} has {len(prefix.shapes)} layers")
        _compare_tokens(prefix, options.get("token_ids"))
        mapped = _mapped(prefix, windows, options)
    except BaseException:
        parts.give_back()  # now: whoever keeps the error would keep the mapping alive
        parts.close_descriptors()
        raise
    mapped.model = weakref.ref(model)
    return mapped if model.device.type == "cpu" else CopiedCache(mapped, model.device)


def refuse_unknown(function: str, known: type, options: Mapping[str, object]) -> None:
    """What Python does for parameters that are spelt out. Errors: TypeError."""
    unknown = options.keys() - known.__annotations__.keys()
    if unknown:
        raise TypeError(f"{function}() got an unexpected keyword argument {min(unknown)!r}")


def _mapped(prefix: Prefix, windows: tuple[int, ...], options: MapOptions) -> MappedCache:
    rows = options.get("rows", 1)
    room_tokens = options.get("room_tokens", prefix.tokens + HEADROOM_TOKENS)
    readers = Readers()
    layers = [
        MappedLayer(
            Source(prefix, layer, prefix.tokens, rows),
            room_tokens=room_tokens,
            window=window,
            readers=readers,
        )
        for layer, window in enumerate(windows)
    ]
    return MappedCache(layers, prefix)


def new_cache(model: PreTrainedModel, *, room_tokens: int = HEADROOM_TOKENS) -> Cache:
    """An empty cache that keeps all tokens of all layers, so that it can be stored.

    Errors: EOPNOTSUPP (a layer whose cache cannot be stored).
    """
    windows = windows_of(model.config)
    if model.device.type != "cpu":
        return DynamicCache()
    readers = Readers()
    layers = [
        MappedLayer(room_tokens=room_tokens, window=window, readers=readers) for window in windows
    ]
    empty = MappedCache(layers)
    empty.model = weakref.ref(model)
    return empty


def _compare_tokens(prefix: Prefix, token_ids: "TokenIds | None") -> None:
    if token_ids is None:
        return
    wanted, held = ids_of_all(token_ids, prefix.tokens), prefix.token_ids()
    if held != wanted:
        pairs = zip(held, wanted, strict=False)
        same = next((at for at, (a, b) in enumerate(pairs) if a != b), len(wanted))
        raise MemError(
            Errno.EINVAL, f"{prefix.name} holds another text from token {same} on", tokens=same
        )
