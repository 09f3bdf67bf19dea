"""Load or compute: `attach` does what the daemon says, and tells it what computing took."""

from typing import Any

import pytest
import torch

from libmem.abi.costs import PrefillSample
from libmem.abi.errors import Errno, MemError
from libmem.hf import Attached, Restore, attach
from libmem.hf.samples import Samples
from tests.libmem.hf.fake_client import FakeClient
from tests.libmem.hf.models import TEXT, generate, longer

pytestmark = pytest.mark.usefixtures("unmeasured")


@pytest.fixture
def stored(model: Any, attached: Attached) -> int:
    """TEXT and an answer are stored; how many tokens of it there are."""
    generate(model, TEXT)
    assert attached.flush(60)
    return TEXT.shape[1]


@pytest.mark.parametrize("load_max_tokens", [0, 40, 1000])
def test_it_maps_as_much_as_the_plan_says(
    model: Any, attached: Attached, cubes: FakeClient, stored: int, load_max_tokens: int
) -> None:
    prompt = longer(TEXT)
    expected = attached.plain_generate()(prompt, max_new_tokens=8, do_sample=False)
    cubes.load_max_tokens = load_max_tokens
    before = attached.stats.tokens_mapped
    got = model.generate(prompt, max_new_tokens=8, do_sample=False)
    assert torch.equal(got, expected)
    stats = attached.stats
    assert stats.tokens_mapped - before == min(load_max_tokens, stored)
    assert stats.recomputed == (load_max_tokens < stored)
    assert stats.tokens_recomputed == max(0, stored - load_max_tokens)
    assert stats.last_plan is not None
    assert stats.last_plan.tokens == stored
    assert stats.problems == 0


def test_what_is_computed_though_it_is_stored_is_not_stored_again(
    model: Any, attached: Attached, cubes: FakeClient, stored: int
) -> None:
    cubes.load_max_tokens = 0
    held = set(cubes.cubes)
    model.generate(TEXT, max_new_tokens=1, do_sample=False)
    assert attached.flush(60)
    assert set(cubes.cubes) == held


@pytest.mark.parametrize("way", Restore)
def test_the_caller_may_decide(model: Any, cubes: FakeClient, way: Restore) -> None:
    cubes.load_max_tokens = 20
    with attach(model, cubes, min_tokens=16, restore=way) as attached:
        generate(model, TEXT)
        assert attached.flush(60)
        before = attached.stats.tokens_mapped
        generate(model, longer(TEXT))
        mapped = attached.stats.tokens_mapped - before
    assert mapped == {"quickest": 20, "load": TEXT.shape[1], "compute": 0}[way]


def test_there_is_no_other_way(model: Any, cubes: FakeClient) -> None:
    with pytest.raises(MemError) as caught:
        attach(model, cubes, restore="slowest")  # type: ignore[arg-type]
    assert caught.value.errno is Errno.EINVAL


def test_prefills_are_reported_but_for_a_short_first(
    model: Any, attached: Attached, cubes: FakeClient
) -> None:
    generate(model, TEXT)
    assert attached.flush(60)
    assert not cubes.reported
    prompt = longer(TEXT)
    generate(model, prompt)
    assert attached.flush(60)
    assert [each.tokens + each.cached_tokens for each in cubes.reported] == [prompt.shape[1]]
    assert all(each.cached_tokens >= TEXT.shape[1] for each in cubes.reported)
    assert all(each.seconds > 0 and each.map_s > 0 for each in cubes.reported)


def test_a_long_first_one_is_reported(model: Any, cubes: FakeClient) -> None:
    with attach(model, cubes, min_tokens=16):
        generate(model, longer(TEXT, seed=3))
    assert [each.cached_tokens for each in cubes.reported] == [0]


def test_the_last_samples_are_reported_at_the_end(model: Any, cubes: FakeClient) -> None:
    with attach(model, cubes, min_tokens=16):
        for _ in range(3):
            generate(model, TEXT)
    assert len(cubes.reported) == 2


def test_a_report_that_fails_is_nobodys_problem(
    model: Any, attached: Attached, cubes: FakeClient, stored: int
) -> None:
    generate(model, TEXT)
    with cubes.failing(Errno.EIO):
        assert attached.flush(60)
    assert attached.stats.problems == 0


def test_reports_are_apart_and_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 100.0
    monkeypatch.setattr("libmem.hf.samples.time.monotonic", lambda: now)
    gathered = Samples()
    sample = PrefillSample(tokens=1, seconds=1.0)
    for _ in range(2):
        gathered.add("a", sample)
    assert gathered.take() is not None
    for _ in range(100):
        gathered.add("a", sample)
    assert gathered.take() is None
    now += 1
    batch = gathered.take()
    assert batch is not None
    assert len(batch.samples) == 64
    gathered.add("a", sample)
    gathered.add("b", sample)
    batch = gathered.take(is_last=True)
    assert batch is not None
    assert (batch.model_digest, len(batch.samples)) == ("b", 1), "of other weights nothing is left"
