"""Prefixes of random values in a fake client, in one or several parts."""

from collections.abc import Sequence

import torch

from libmem.abi.kv import KvDtype, KvHeader, KvLayers, layout_of
from libmem.hf.prefix import Prefix
from libmem.hf.store import Rows, save_rows
from tests.caches import digest_before
from tests.libmem.hf.fake_client import FakeClient

__all__ = ["MODEL", "header_of", "store", "stored_prefix"]

MODEL = "ab" * 32


def header_of(
    tokens: int, dtype: str = "float32", shape: tuple[int, int, int] = (2, 16, 16), layers: int = 1
) -> KvHeader:
    """Layers of `shape`: heads, key_dim, value_dim."""
    return KvHeader(MODEL, KvDtype(dtype), (KvLayers(layers, *shape),), tokens)


def store(client: FakeClient, header: KvHeader, cuts: Sequence[int] = ()) -> list[torch.Tensor]:
    """Random states as cubes `/kv/0`, `/kv/1` ..., each standing on the one before.

    `cuts` are tokens at which parts end; each begins at the whole grain below the last one's end.
    Returns keys and values of each layer, [heads, tokens, dim].
    """
    generator = torch.Generator().manual_seed(header.tokens)
    dtype = getattr(torch, header.dtype)
    states = [
        torch.randn((run.heads, header.tokens, dim), generator=generator).to(dtype)
        for run in header.layers
        for _ in range(run.count)
        for dim in (run.key_dim, run.value_dim)
    ]
    grain, start, parents = layout_of(header).grain_tokens, 0, ()
    for number, end in enumerate([*cuts, header.tokens]):
        before = digest_before(range(end), start)
        part = KvHeader(header.model, header.dtype, header.layers, end, start, before)
        mine = [each[:, start:end] for each in states]
        save_rows(client, f"/kv/{number}", Rows(part, list(range(start, end)), mine, parents))
        start, parents = end // grain * grain, (f"/kv/{number}@v1",)  # type: ignore[assignment]
        if start == 0:
            parents = ()
    return states


def stored_prefix(client: FakeClient, tokens: int | None = None) -> Prefix:
    """The last cube that `store` made, mapped."""
    return Prefix(client.map_parts(f"/kv/{len(client.cubes) - 1}"), tokens)
