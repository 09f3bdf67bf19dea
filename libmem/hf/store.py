"""Caches into cubes: what is stored, and how it gets there without a copy in between.

Owns the header of what is stored. Invariant: a row is stored only if it is the key or value of
exactly one of the token ids beside it; whatever cannot be known to be so is refused.

Public through `libmem.hf`.
"""

from itertools import groupby
from typing import Any, NamedTuple, TypedDict, Unpack

import msgspec
import torch
from transformers import PreTrainedModel
from transformers.cache_utils import Cache, DynamicLayer, DynamicSlidingWindowLayer

from libmem.abi.calls import WriteReply
from libmem.abi.errors import Errno, MemError
from libmem.abi.kv import (
    KV_ATTRIBUTE,
    KV_CHAIN_MAX,
    KvDtype,
    KvHeader,
    KvLayers,
    KvStored,
    digest_of_tokens,
    layout_of,
    pack_tokens,
    planes_of,
)
from libmem.abi.lineage import DERIVATION_ATTRIBUTE, Derivation
from libmem.abi.structs import CubeType, Durability, Governance
from libmem.fill import Fill
from libmem.hf.cache import CopiedCache, KvClient, MappedCache, refuse_unknown
from libmem.hf.fingerprint import Identified, identify
from libmem.hf.kinds import windows_of
from libmem.hf.layers import MappedLayer
from libmem.hf.tokens import TokenIds, ids_of_row

__all__ = ["Rows", "SaveOptions", "fork", "rows_of", "save_cache", "save_rows"]


class SaveOptions(TypedDict, total=False):
    """What of a cache is stored, and how."""

    row: int
    """The row of the batch; 0 where none is given."""
    tokens: int | None
    """The first so many tokens; all that the cache holds, where none is given."""
    base: MappedCache | CopiedCache | None
    """The cache whose mapped prefix the new cube stands on, instead of holding it again."""
    attention_mask: torch.Tensor | None
    """[rows, tokens], as the model had it: a row with padding is refused."""
    durability: Durability
    """`cache` where none is given. A `durable` cube holds all its tokens itself."""
    expected_version: int | None
    governance: Governance | None
    """Mode and expiry, for instance; the user's alone and for ever, where none is given."""
    parents: tuple[str, ...]
    """What it was made of, beside a cube that it stands on."""
    derivation: Derivation | None
    """How: then the cube falls with its parents (docs/lineage.md)."""
    stored: KvStored | None
    """How it may lie on disk, `KvStored("int8")` for instance; the daemon's default where none is
    given."""


class Rows(NamedTuple):
    """One row of a cache, ready to be stored: views, nothing is copied."""

    header: KvHeader
    token_ids: list[int]
    states: list[torch.Tensor]
    """Keys, values of each layer, [heads, tokens, dim], from `header.start` on."""
    parents: tuple[str, ...]


def save_cache(
    client: KvClient,
    name: str,
    model: PreTrainedModel,
    cache: Cache,
    token_ids: TokenIds,
    **options: Unpack[SaveOptions],
) -> WriteReply:
    """Store a row of a cache under `name`, as a cube of type `activation`.

    `token_ids` are those that the row was computed from, position 0 first; of a batch, [rows,
    tokens], those of the row `row` count.
    Errors: EINVAL (fewer ids than tokens), EOPNOTSUPP (a cache that cannot be stored; the message
    names the layer), and what `create` and `seal` list.
    """
    return save_rows(client, name, rows_of(identify(model), cache, token_ids, **options), **options)


def fork(
    client: KvClient,
    name: str,
    cache: Cache,
    token_ids: TokenIds,
    **options: Unpack[SaveOptions],
) -> WriteReply:
    """Store a mapped cache as a child of the cube that it maps: only what is behind the prefix.

    Whole where the cube is to be durable, or stands on as many as it may.
    Errors: those of `save_cache`, EINVAL also for a cache that was not made here; EMODEL
    (the model's weights changed since it was mapped).
    """
    refuse_unknown("fork", SaveOptions, options)
    if not isinstance(cache, MappedCache | CopiedCache):
        text = f"a {type(cache).__name__} stands on no cube: save_cache() stores it"
        raise MemError(Errno.EINVAL, text)
    model = cache.model() if cache.model is not None else None
    if model is None:
        raise MemError(Errno.EINVAL, "the model of this cache is gone")
    now = identify(model)
    if cache.prefix is not None and cache.prefix.header.model != now.digest:
        raise MemError(Errno.EMODEL, "the model was changed since it mapped this prefix")
    options.setdefault("base", cache)
    return save_rows(client, name, rows_of(now, cache, token_ids, **options), **options)


def rows_of(
    identified: Identified,
    cache: Cache,
    token_ids: TokenIds,
    **options: Unpack[SaveOptions],
) -> Rows:
    """What `save_cache` would store. Errors: EINVAL, EOPNOTSUPP."""
    refuse_unknown("save_cache", SaveOptions, options)
    windows = windows_of(identified.model.config)
    row = options.get("row", 0)
    _refuse_padding(options.get("attention_mask"), row)
    if len(cache.layers) != len(windows):
        raise MemError(Errno.EINVAL, f"a cache of {len(cache.layers)} layers, not {len(windows)}")
    held = [_states(at, layer, row) for at, layer in enumerate(cache.layers)]
    asked = options.get("tokens")
    tokens = held[0][0].shape[1] if asked is None else asked
    ids = ids_of_row(token_ids, row)
    if (
        tokens < 1
        or len(ids) < tokens
        or any(each.shape[1] < tokens for two in held for each in two)
    ):
        raise MemError(Errno.EINVAL, f"not {tokens} tokens in every layer, or {len(ids)} ids")
    header = KvHeader(
        model=identified.digest,
        dtype=_dtype(held),
        layers=_runs(held, windows),
        tokens=tokens,
        stored=options.get("stored"),
    )
    start = 0
    base = options.get("base")
    if base is not None and options.get("durability") != Durability.DURABLE:
        start = _start_on(base, header, ids)
    parents = (base.prefix.name,) if start and base and base.prefix else ()
    states = [each[:, start:tokens] for two in held for each in two]
    before = digest_of_tokens(pack_tokens(ids[:start])) if start else ""
    header = msgspec.structs.replace(header, start=start, before=before)
    return Rows(header, ids[start:tokens], states, parents)


def save_rows(
    client: KvClient, name: str, rows: Rows, **options: Unpack[SaveOptions]
) -> WriteReply:
    """Write rows into a cube's memory, and commit it."""
    fill = client.create(
        name,
        layout_of(rows.header).size_bytes,
        type=CubeType.ACTIVATION,
        attributes=_attributes(rows.header, options.get("derivation")),
        parents=rows.parents + options.get("parents", ()),
        durability=options.get("durability", Durability.CACHE),
        expected_version=options.get("expected_version"),
        governance=options.get("governance"),
    )
    with fill:
        _write(fill, rows)
        return fill.seal()


def _attributes(header: KvHeader, derivation: Derivation | None) -> dict[str, Any]:
    attributes = {KV_ATTRIBUTE: msgspec.to_builtins(header)}
    if derivation is not None:
        attributes[DERIVATION_ATTRIBUTE] = msgspec.to_builtins(derivation)
    return attributes


def _write(fill: Fill, rows: Rows) -> None:
    fill.copy_in(pack_tokens(rows.token_ids))
    planes = planes_of(rows.header)
    for states in rows.states:
        # The heads come first: a zip takes no plane that it has no head for.
        for head, plane in zip(states.cpu(), planes, strict=False):
            # numpy has no bfloat16; bytes it has.
            rows_bytes = head.contiguous().view(torch.uint8).numpy().data
            fill.copy_in(rows_bytes, plane.offset_bytes)


def _refuse_padding(attention_mask: torch.Tensor | None, row: int) -> None:
    if attention_mask is None:
        return
    if attention_mask.dim() != 2 or not 0 <= row < attention_mask.shape[0]:
        shape = tuple(attention_mask.shape)
        raise MemError(Errno.EINVAL, f"there is no row {row} in an attention mask of {shape}")
    if not bool((attention_mask[row] != 0).all()):
        raise MemError(Errno.EOPNOTSUPP, f"row {row} is padded: its positions are not its own")


def _states(at: int, layer: Any, row: int) -> tuple[torch.Tensor, torch.Tensor]:
    kind = type(layer)
    if kind not in {DynamicLayer, DynamicSlidingWindowLayer, MappedLayer}:
        raise MemError(Errno.EOPNOTSUPP, f"layer {at} is a {kind.__name__}: it is not stored")
    if not layer.is_initialized:
        raise MemError(Errno.EINVAL, f"layer {at} holds nothing yet")
    keys, values = layer.keys, layer.values
    if keys.dim() != 4 or values.dim() != 4 or keys.shape[:3] != values.shape[:3]:
        raise MemError(
            Errno.EOPNOTSUPP,
            f"layer {at} holds {tuple(keys.shape)} and {tuple(values.shape)}, no keys and values",
        )
    if layer.get_seq_length() != keys.shape[2]:
        raise MemError(
            Errno.EOPNOTSUPP,
            f"layer {at} is a sliding window that dropped its first tokens: "
            "compute them into new_cache(), which keeps all",
        )
    if not 0 <= row < keys.shape[0]:
        raise MemError(Errno.EINVAL, f"there is no row {row} among {keys.shape[0]}")
    return keys[row].detach(), values[row].detach()


def _dtype(held: list[tuple[torch.Tensor, torch.Tensor]]) -> KvDtype:
    found = {str(each.dtype).removeprefix("torch.") for two in held for each in two}
    try:
        (name,) = found
        return KvDtype(name)
    except ValueError:
        raise MemError(Errno.EOPNOTSUPP, f"a cache of {sorted(found)} is not stored") from None


def _runs(
    held: list[tuple[torch.Tensor, torch.Tensor]], windows: tuple[int, ...]
) -> tuple[KvLayers, ...]:
    shapes = [
        (keys.shape[0], keys.shape[2], values.shape[2], window)
        for (keys, values), window in zip(held, windows, strict=True)
    ]
    return tuple(KvLayers(len(list(run)), *shape) for shape, run in groupby(shapes))


def _start_on(base: MappedCache | CopiedCache, header: KvHeader, ids: list[int]) -> int:
    """The first token to be stored by a child of what `base` maps; 0: it must hold all itself."""
    prefix = base.prefix
    if prefix is None or prefix.parts_count >= KV_CHAIN_MAX:
        return 0
    if prefix.header.model != header.model or prefix.header.layers != header.layers:
        raise MemError(Errno.EMODEL, f"{prefix.name} is of another model")
    # At least one token must be the child's own.
    shared = min(base.shared_tokens, header.tokens - 1)
    start = shared // prefix.grain_tokens * prefix.grain_tokens
    if start and prefix.token_ids()[:start] != ids[:start]:
        raise MemError(Errno.EINVAL, f"{prefix.name} holds another text")
    return start
