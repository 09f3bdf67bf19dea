"""What the tests of the transformers glue share."""

import importlib
import importlib.util
from collections.abc import Iterator
from typing import Any

import pytest

from tests.libmem.hf.fake_client import FakeClient

if importlib.util.find_spec("transformers") is None:
    collect_ignore_glob = ["test_*.py"]  # the extra `models` is not installed
else:
    import torch

    from libmem.hf import Attached, attach
    from tests.libmem.hf.models import make_model

    # Threads of torch spin while they wait: on busy cores they take them from each other.
    torch.set_num_threads(1)


@pytest.fixture
def cubes() -> Iterator[FakeClient]:
    fake = FakeClient()
    yield fake
    fake.close()


@pytest.fixture
def unmeasured(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing is measured, so everything pays: the clock decides no test."""
    attach = importlib.import_module("libmem.hf.attach")
    monkeypatch.setattr(attach, "_recent", lambda before, latest: before)


@pytest.fixture
def model() -> Any:
    return make_model("llama")


@pytest.fixture
def attached(model: Any, cubes: FakeClient) -> "Iterator[Attached]":
    with attach(model, cubes, min_tokens=16) as each:
        yield each
