"""What the tests of the transformers glue share."""

import importlib.util
from collections.abc import Iterator

import pytest

from tests.libmem.hf.fake_client import FakeClient

if importlib.util.find_spec("transformers") is None:
    collect_ignore_glob = ["test_*.py"]  # the extra `models` is not installed
else:
    import torch

    # Threads of torch spin while they wait: on busy cores they take them from each other.
    torch.set_num_threads(1)


@pytest.fixture
def cubes() -> Iterator[FakeClient]:
    fake = FakeClient()
    yield fake
    fake.close()
