"""The list of drivers: complete, and every row keeps the kernel's contract."""

from libmem.abi.structs import CubeType, Descriptive, Durability
from memosd.drivers.blob.top import BlobDriver
from memosd.drivers.table import DRIVERS
from memosd.kernel.ports import Driver
from tests.caches import attributes_of, header_of


def test_every_type_has_one_driver_at_most() -> None:
    types = [driver.type for driver in DRIVERS]
    assert sorted(types) == sorted(set(types))
    assert {CubeType.PLAINTEXT, CubeType.BLOB} <= set(types)


def test_rows_are_drivers() -> None:
    rows: tuple[Driver, ...] = DRIVERS  # a type checker compares the signatures
    cache = [row.type for row in rows if row.durability is Durability.CACHE]
    assert cache == [CubeType.ACTIVATION], "what can be computed again"


def test_what_may_have_another_form_is_not_indexed() -> None:
    """The indexer reads payloads from disk as they lie there."""
    attributes = attributes_of(header_of(100))
    coded = [row for row in DRIVERS if row.coding(attributes) is not None]
    assert [row.indexed_bytes for row in coded] == [0]


def test_a_blob_is_any_bytes_and_has_no_words() -> None:
    blob = BlobDriver()
    described = Descriptive(title="title", media_type="image/png")
    blob.check_header(described, {"any": 1})
    blob.check_payload(b"\xff\0\xfe", described, {})
    assert not blob.is_new_promise(Descriptive(), described)
    assert blob.indexed_bytes == 0
    assert blob.index_text(b"words", described) is None
