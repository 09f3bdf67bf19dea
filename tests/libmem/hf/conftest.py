"""What the tests of the transformers glue share."""

from collections.abc import Iterator

import pytest

from tests.libmem.hf.fake_client import FakeClient

pytest.importorskip("transformers", reason="needs the extra `models`")


@pytest.fixture
def cubes() -> Iterator[FakeClient]:
    fake = FakeClient()
    yield fake
    fake.close()
