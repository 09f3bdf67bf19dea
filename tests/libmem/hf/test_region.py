"""Regions: what is mapped where, what is refused before anything is mapped, and that all goes."""

import gc
import os
from typing import Any

import msgspec
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from libmem.abi.errors import Errno, MemError
from libmem.abi.kv import KV_ATTRIBUTE, KV_CHAIN_MAX
from libmem.hf import region as regions
from libmem.hf.prefix import LayerShape, Prefix
from libmem.hf.region import Region
from tests.libmem.hf.fake_client import FakeClient, held_memory
from tests.libmem.hf.stored import MODEL, header_of, store, stored_prefix


def rows_in(region: Region, kind: int, tokens: int) -> torch.Tensor:
    """Keys (0) or values (1), [rows, heads, tokens, dim]."""
    shape = region.shape
    dim = (shape.key_dim, shape.value_dim)[kind]
    size = region.rows * shape.heads * region.room_tokens * dim
    flat = torch.frombuffer(
        region, dtype=torch.float32, count=size, offset=kind * region.values_offset_bytes
    )
    return flat.view(region.rows, shape.heads, region.room_tokens, dim)[:, :, :tokens]


@pytest.mark.parametrize("is_copied", [False, True], ids=["mapped", "copied"])
@given(
    tokens=st.integers(1, 200),
    cuts=st.lists(st.integers(1, 199), max_size=3),
    shape=st.sampled_from([(1, 16, 16), (2, 24, 8), (3, 64, 32), (2, 20, 20)]),
    rows=st.integers(1, 3),
    used=st.integers(1, 200),
)
def test_every_row_shows_the_stored_tokens(
    is_copied: bool,
    *,
    tokens: int,
    cuts: list[int],
    shape: tuple[int, int, int],
    rows: int,
    used: int,
) -> None:
    client = FakeClient()
    used = min(used, tokens)
    states = store(client, header_of(tokens, shape=shape), sorted({c for c in cuts if c < tokens}))
    prefix = stored_prefix(client)
    room = (-(-tokens // prefix.grain_tokens) + 1) * prefix.grain_tokens
    with pytest.MonkeyPatch.context() as patch:
        if is_copied:
            patch.setattr(regions, "_vmas_allowed", lambda: 0)
        region = Region(prefix.shapes[0], rows, room)
        region.place(prefix, 0, used)
    for kind in (0, 1):
        held = rows_in(region, kind, used)
        assert all(torch.equal(row, states[kind][:, :used]) for row in held)
    client.close()


def test_a_write_is_private(cubes: FakeClient) -> None:
    states = store(cubes, header_of(100))
    one, other = (Region(LayerShape(2, 16, 16, 4), 1, 256) for _ in range(2))
    for region in (one, other):
        region.place(stored_prefix(cubes), 0, 100)
    rows_in(one, 0, 256).zero_()
    assert torch.equal(rows_in(other, 0, 100)[0], states[0])
    assert torch.equal(rows_in(other, 0, 256)[0, :, 128:], torch.zeros(2, 128, 16))
    assert os.pread(cubes.cubes["/kv/0"].fd, 4096, 4096) == states[0][0, :64].numpy().tobytes()


def test_all_goes_with_the_last_tensor(cubes: FakeClient) -> None:
    store(cubes, header_of(100, layers=4), [70])
    before = held_memory()
    prefix = stored_prefix(cubes)
    views = []
    for layer in range(4):
        region = Region(prefix.shapes[layer], 2, 256)
        region.place(prefix, layer, 100)
        views.append(rows_in(region, 1, 100))
    del prefix, region
    gc.collect()
    assert held_memory().vmas > before.vmas  # the tensors are still there
    assert views[0].isfinite().all()
    del views
    assert (held_memory(), cubes.leases) == (before, 0)


def test_the_vmas_of_regions_are_counted_and_given_back(
    cubes: FakeClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    store(cubes, header_of(100))
    prefix = stored_prefix(cubes)
    gc.collect()
    regions._vmas_held, held = 0, 9  # one region of two heads, keys and values
    regions._ended.clear()
    monkeypatch.setattr(regions, "_vmas_allowed", lambda: held)
    first, second = (Region(prefix.shapes[0], 1, 256) for _ in range(2))
    first.place(prefix, 0, 100)
    second.place(prefix, 0, 100)
    assert (first.vmas, second.vmas) == (held, 0)  # the second was copied
    assert torch.equal(rows_in(first, 0, 100), rows_in(second, 0, 100))
    del first
    gc.collect()
    third = Region(prefix.shapes[0], 1, 256)
    third.place(prefix, 0, 100)
    assert third.vmas == held


def test_no_address_space_is_one_clear_error() -> None:
    with pytest.raises(MemError) as caught:
        Region(LayerShape(64, 128, 128, 4), 1 << 20, 1 << 30)
    assert caught.value.errno is Errno.ENOMEM


def test_more_tokens_than_room_are_refused(cubes: FakeClient) -> None:
    store(cubes, header_of(100))
    prefix = stored_prefix(cubes)
    region = Region(prefix.shapes[0], 1, 64)
    with pytest.raises(MemError) as caught:
        region.place(prefix, 0, 100)
    assert caught.value.errno is Errno.EINVAL
    with pytest.raises(MemError):
        Region(LayerShape(3, 16, 16, 4), 1, 256).place(prefix, 0, 100)


def hostile(parts: Any, **change: Any) -> Any:
    """The last part claims something else of itself."""
    header = msgspec.to_builtins(header_of(100)) | change
    parts.parts[-1].attributes = {KV_ATTRIBUTE: header}
    return parts


@pytest.mark.parametrize(
    ("change", "errno"),
    [
        ({"tokens": 5000}, Errno.EILSEQ),
        ({"tokens": 1}, Errno.EILSEQ),
        ({"tokens": -1}, Errno.EINVAL),
        ({"start": 64, "before": "0" * 64}, Errno.EILSEQ),
        ({"start": 3, "before": "0" * 64}, Errno.EINVAL),
        ({"dtype": "float64"}, Errno.EILSEQ),
        ({"layers": [{"count": 2, "heads": 2, "key_dim": 16, "value_dim": 16}]}, Errno.EILSEQ),
        ({"layers": [{"count": 1, "heads": 1, "key_dim": 32, "value_dim": 32}]}, None),
        ({"model": "x"}, Errno.EINVAL),
    ],
)
def test_a_header_that_lies_maps_nothing(
    cubes: FakeClient, change: dict[str, Any], errno: Errno | None
) -> None:
    store(cubes, header_of(100))
    parts = hostile(cubes.map_parts("/kv/0"), **change)
    if errno is None:  # the same size in another shape: its own planes, nobody else's memory
        prefix = Prefix(parts)
        with pytest.raises(MemError):
            Region(LayerShape(2, 16, 16, 4), 1, 256).place(prefix, 0, 100)
        return
    with pytest.raises(MemError) as caught:
        Prefix(parts)
    assert caught.value.errno is errno


def test_parts_that_do_not_fit_together_are_refused(cubes: FakeClient) -> None:
    store(cubes, header_of(200), [70, 150])

    def refused(parts: Any) -> Errno:
        with pytest.raises(MemError) as caught:
            Prefix(parts)
        return caught.value.errno

    middle_gone = cubes.map_parts("/kv/2")
    os.close(middle_gone.parts.pop(1).fd)
    assert refused(middle_gone) is Errno.EILSEQ
    other = cubes.map_parts("/kv/2")
    root = msgspec.to_builtins(header_of(70)) | {"model": "cd" * 32}
    other.parts[0].attributes = {KV_ATTRIBUTE: root}
    assert refused(other) is Errno.EMODEL
    many = cubes.map_parts("/kv/0")
    many.parts *= KV_CHAIN_MAX + 1
    assert refused(many) is Errno.EILSEQ
    none = cubes.map_parts("/kv/0")
    os.close(none.parts[0].fd)
    none.parts[0].fd = os.open("/dev/null", os.O_RDONLY)
    assert refused(none) is Errno.EILSEQ


def test_token_ids_come_from_all_parts(cubes: FakeClient) -> None:
    store(cubes, header_of(200), [70, 150])
    assert stored_prefix(cubes).token_ids() == list(range(200))
    assert stored_prefix(cubes, 130).token_ids() == list(range(130))
    assert stored_prefix(cubes).header.model == MODEL
    with pytest.raises(MemError):
        stored_prefix(cubes, 201)
