"""What `attach` keeps: where, whose, for how long, by which session, and with which patience."""

import importlib
import os
import threading
import time
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor, wait
from contextlib import contextmanager
from itertools import pairwise
from typing import Any

import pytest
import torch
from transformers import PreTrainedModel

import libmem.hf
from libmem.abi.calls import PrefixReply, ReportPrefill
from libmem.abi.errors import Errno, MemError
from libmem.hf import Attached, attach
from libmem.hf.attach import _recent
from tests.libmem.hf.fake_client import FakeClient
from tests.libmem.hf.models import GREEDY, TEXT, generate, prompt

pytestmark = pytest.mark.usefixtures("unmeasured")


MODULE = importlib.import_module("libmem.hf.attach")  # the package has the function of that name


def test_it_is_stored_once(model: PreTrainedModel, attached: Attached, cubes: FakeClient) -> None:
    generate(model, TEXT)
    assert attached.flush(60)
    with not_found_once(cubes):  # by another process, while this one computed it
        generate(model, TEXT)
    assert attached.flush(60)
    stats = attached.stats
    assert (len(cubes.cubes), stats.stored, stats.hits, stats.problems) == (1, 1, 0, 0)
    generate(model, TEXT)
    assert attached.flush(60)
    assert len(cubes.cubes) == 1


@contextmanager
def not_found_once(cubes: FakeClient) -> Iterator[None]:
    find = cubes.find_prefix

    def nothing_found(model: str, tokens: bytes, *, under: str = "/") -> PrefixReply:
        cubes.find_prefix = find  # type: ignore[method-assign]
        return PrefixReply()

    cubes.find_prefix = nothing_found  # type: ignore[method-assign]
    yield
    cubes.find_prefix = find  # type: ignore[method-assign]


def test_what_stores_has_a_session_of_its_own(model: Any, cubes: FakeClient) -> None:
    with attach(model, cubes) as each:
        generate(model, TEXT)
        assert each.flush(60)
        (sibling,) = cubes.siblings
        assert (sibling.creates, sibling.is_open) == (1, True)
    assert not sibling.is_open


def test_another_users_namespace_is_not_believed(model: Any, cubes: FakeClient) -> None:
    cubes.owner_uid = os.geteuid() + 1
    with pytest.raises(MemError, match="trust_namespace") as caught:
        attach(model, cubes, namespace="/kv")
    assert caught.value.errno is Errno.EPERM
    assert "generate" not in vars(model)
    assert not any(each.is_open for each in cubes.siblings)
    with attach(model, cubes, namespace="/kv/models", trust_namespace=True) as each:
        generate(model, TEXT)
        assert each.flush(60)
        generate(model, TEXT)
        assert each.stats.hits == 1
    cubes.owner_uid = 0  # the administrator's is
    attach(model, cubes, namespace="/kv").detach()


def test_a_namespace_that_changes_hands_is_left(model: Any, cubes: FakeClient) -> None:
    with attach(model, cubes) as each:
        expected = generate(model, TEXT)
        assert each.flush(60)
        cubes.owner_uid = os.geteuid() + 1
        assert torch.equal(generate(model, TEXT), expected)
        assert (each.stats.hits, each.stats.problems) == (0, 1)
        assert each.stats.last_error is not None
        assert each.stats.last_error.errno is Errno.EPERM
    with cubes.failing(Errno.EACCES), pytest.raises(MemError) as caught:
        attach(model, cubes)
    assert caught.value.errno is Errno.EPERM


def test_what_is_stored_is_the_users_and_expires(model: Any, cubes: FakeClient) -> None:
    limits = (None, 60.0, 7 * 24 * 3600.0)
    options: list[Any] = [{"expires_s": None}, {"expires_s": 60}, {}]
    for number, each in enumerate(options):
        with attach(model, cubes, **each) as attached:
            generate(model, prompt(70, seed=number))
            assert attached.flush(60)
    assert all(name.startswith(f"/kv-{os.geteuid()}/") for name in cubes.cubes)
    now_ns = time.time_ns()
    for cube, limit_s in zip(cubes.cubes.values(), limits, strict=True):
        if limit_s is None:
            assert cube.governance is None
        else:
            assert cube.governance is not None
            assert 0 <= now_ns + limit_s * 1e9 - cube.governance.expires_ns < 60e9
    with pytest.raises(MemError):
        attach(model, cubes, expires_s=0)
    with pytest.raises(TypeError, match="min_token"):
        attach(model, cubes, min_token=3)  # type: ignore[call-arg]


def test_a_daemon_that_is_gone_is_asked_ever_more_rarely(
    model: Any, attached: Attached, cubes: FakeClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    now, patience, call = 1000.0, list[float | None](), cubes.call

    def counted(request: Any, timeout_s: float | None = None) -> Any:
        if not isinstance(request, ReportPrefill):  # for which nobody waits
            patience.append(timeout_s)
        return call(request, timeout_s)

    monkeypatch.setattr(cubes, "call", counted)
    monkeypatch.setattr("libmem.hf.shelf.time.monotonic", lambda: now)
    asked = []
    with cubes.failing(Errno.ETIMEDOUT):
        for _ in range(200):
            before = len(patience)
            generate(model, prompt(2), max_new_tokens=1)
            if len(patience) > before:
                asked.append(now)
            now += 1
    pauses = [after - before for before, after in pairwise(asked)]
    assert pauses == [5, 10, 20, 40, 80]
    assert patience == [2.0] + [0.2] * 5
    generate(model, prompt(2), max_new_tokens=1)
    now += 80
    patience.clear()
    for _ in range(2):
        generate(model, prompt(2), max_new_tokens=1)
    assert patience == [0.2, 2.0, 2.0, 2.0]


def test_only_one_of_two_threads_stores(
    model: Any, attached: Attached, cubes: FakeClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    both, may_go_on, create = threading.Barrier(2), threading.Event(), cubes.create

    def slow(*args: Any, **options: Any) -> Any:
        assert may_go_on.wait(60)
        return create(*args, **options)

    def together(*args: Any, **options: Any) -> Any:
        rows = libmem.hf.store.rows_of(*args, **options)
        both.wait(60)
        return rows

    monkeypatch.setattr(cubes, "create", slow)
    monkeypatch.setattr(MODULE, "rows_of", together)
    with ThreadPoolExecutor(2) as pool:
        done = [pool.submit(model.generate, prompt(40, seed=seed), **GREEDY) for seed in (1, 2)]
        wait(done)
    may_go_on.set()
    attached.detach()
    assert [each.exception() for each in done] == [None, None]
    assert len(cubes.cubes) == 1


def test_a_prefix_that_costs_more_than_it_saves_is_not_stored(
    model: PreTrainedModel, attached: Attached, cubes: FakeClient
) -> None:
    attached.stats.store_s_per_token, attached.stats.prefill_s_per_token = 2.0, 1.0
    generate(model, TEXT)
    assert attached.flush(60)
    assert not cubes.cubes
    attached.stats.prefill_s_per_token = 3.0
    generate(model, TEXT)
    assert attached.flush(60)
    assert len(cubes.cubes) == 1


def test_what_it_costs_is_measured(
    model: PreTrainedModel, attached: Attached, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(MODULE, "_recent", _recent)
    generate(model, TEXT)
    assert attached.flush(60)
    assert attached.stats.prefill_s_per_token > 0
    assert attached.stats.store_s_per_token > 0


def test_a_cache_is_not_cropped_while_it_is_stored(
    model: PreTrainedModel,
    attached: Attached,
    cubes: FakeClient,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    may_go_on, create = threading.Event(), cubes.create

    def slow(*args: Any, **options: Any) -> Any:
        assert may_go_on.wait(60)
        return create(*args, **options)

    monkeypatch.setattr(cubes, "create", slow)
    result = generate(model, TEXT, return_dict_in_generate=True)
    assert not attached.flush(0)
    held = result.past_key_values.layers[0].keys.clone()

    def wait_for(work: list[Future[None]]) -> None:
        may_go_on.set()  # not before somebody waits
        wait(work)

    monkeypatch.setattr("libmem.hf.layers.wait", wait_for)
    result.past_key_values.crop(-50)
    with torch.no_grad():
        model(prompt(50, seed=9), past_key_values=result.past_key_values)
    assert attached.flush(60)
    (name,) = cubes.cubes
    cache = libmem.hf.map_cache(cubes, name, model)
    assert torch.equal(cache.layers[0].keys, held)
