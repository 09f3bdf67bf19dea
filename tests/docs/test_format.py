"""docs/format.md shows the very bytes, fields and names that the code makes."""

import os
import re
import sqlite3
from collections.abc import Callable
from pathlib import Path

import msgspec
import pytest

from libmem.abi.calls import StatCube, UnlinkReply
from libmem.abi.digest import Manifest, manifest_of
from libmem.abi.errors import Errno, MemError
from libmem.abi.kv import (
    KV_CHAIN_MAX,
    KV_TOKENS_MAX,
    KvDtype,
    KvHeader,
    KvLayers,
    digest_of_tokens,
    layout_of,
    pack_tokens,
    planes_of,
)
from libmem.abi.limits import FRAME_MAX_BYTES, PAGE_BYTES
from libmem.abi.lora import LoraHeader
from libmem.abi.structs import (
    CubeType,
    Descriptive,
    Durability,
    EventKind,
    Sensitivity,
    StoredForm,
)
from libmem.abi.tensors import HEADER_MAX_BYTES
from libmem.abi.wire import FdTag, encode, encode_error, encode_reply, encode_request
from memosd.drivers.recall.index import RecallIndex
from memosd.drivers.tiers.disk import DiskTier
from memosd.drivers.tiers.ram import RamTier
from memosd.kernel.rows import (
    TABLES,
    CostRow,
    CubeRow,
    DerivedRow,
    EventRow,
    FormRow,
    GroupRow,
    HeatRow,
    LogRow,
    NamespaceRow,
    PrefixRow,
    VersionRow,
    encode_page,
    encode_row,
    seal_value,
)
from memosd.tools.bench.daemon import private_daemon
from tests.docs.markdown import ROOT, blocks

FORMAT = ROOT / "docs/format.md"
TEXT = FORMAT.read_text(encoding="utf-8")

NAME = "/notes/today"
PAYLOAD = b"The kernel boots."
MANIFEST = manifest_of(PAYLOAD)
CUBE_ID = bytes.fromhex("01a203df5e660a1040ba8ce6492933ca")
PAGE_FILE_ID = bytes.fromhex("01a203df5e660a1040ba8ce6492933cb")
TIME_NS = 1_795_361_300_000_000_000
EVENT_KEY = (1).to_bytes(8, "big") * 2
ROWS: list[type[msgspec.Struct]] = [
    CostRow,
    CubeRow,
    VersionRow,
    NamespaceRow,
    GroupRow,
    PrefixRow,
    DerivedRow,
    FormRow,
    LogRow,
    EventRow,
    HeatRow,
]

VERSION = VersionRow(
    version=1,
    payload_id=CUBE_ID,
    size_bytes=len(PAYLOAD),
    digest=MANIFEST.digest,
    is_inline=True,
    created_ns=TIME_NS,
    author_uid=1000,
    descriptive=Descriptive(title="Boot"),
    attributes={},
    parents=(),
)
CUBE = CubeRow(
    name=NAME,
    namespace=1,
    type=CubeType.PLAINTEXT,
    durability=Durability.DURABLE,
    uid=1000,
    gid=1000,
    mode=0o600,
    priority=50,
    expires_ns=0,
    sensitivity=Sensitivity.INTERNAL,
    created_ns=TIME_NS,
    last_version=1,
    current=VERSION,
    half_life_s=3600.0,
)
EVENT = EventRow(
    time_ns=TIME_NS,
    kind=EventKind.WRITE,
    name=NAME,
    id=CUBE_ID,
    version=1,
    actor_uid=1000,
    old_name="",
    owner_uid=1000,
    owner_gid=1000,
    mode=0o600,
    namespace=1,
)
FORM = StoredForm(
    form="int8",
    size_bytes=20_480,
    digest=manifest_of(bytes(20_480)).digest,
    error=0.0078125,
    content_digest=manifest_of(bytes(69_632)).digest,
)
KV = KvHeader(
    model="ab" * 32,
    dtype=KvDtype.FLOAT32,
    layers=(KvLayers(count=1, heads=2, key_dim=64, value_dim=64),),
    tokens=18,
    start=16,
    before=digest_of_tokens(pack_tokens(range(100, 116))),
)
KV_ID = bytes.fromhex("01a203df5e660a1040ba8ce6492933ce")
PREFIX = PrefixRow(
    cube_id=KV_ID,
    model=bytes.fromhex(KV.model),
    start=KV.start,
    tokens=pack_tokens([116, 117]),
    base=bytes.fromhex("01a203df5e660a1040ba8ce6492933cd"),
)
DERIVED = DerivedRow(cube_id=CUBE_ID, sources=((KV_ID, PREFIX.base),))
NOBODY = MemError(Errno.ENOENT, "no such cube", cube=NAME)

BYTES: dict[str, Callable[[], bytes]] = {
    "request": lambda: encode_request(StatCube(NAME), 7, 3),
    "reply": lambda: encode_reply(7, 3, UnlinkReply(freed_bytes=517, versions=1)),
    "fault": lambda: encode_error(7, 3, NOBODY),
    "tag": lambda: encode(FdTag(1, 3)),
    "page digest": lambda: MANIFEST.page_digests,
    "payload digest": lambda: MANIFEST.digest,
    "names key": NAME.encode,
    "names value": lambda: seal_value(NAME.encode(), CUBE_ID),
    "payloads value": lambda: PAYLOAD,
    "cubes value": lambda: encode_row(CUBE_ID, CUBE),
    "pages value": lambda: encode_page(PAGE_FILE_ID, CUBE_ID, FORM),
    "prefixes value": lambda: encode_row(KV_ID, PREFIX),
    "derived value": lambda: encode_row(CUBE_ID, DERIVED),
    "kv attributes": lambda: encode({"kv": KV}),
    "kv tokens": lambda: PREFIX.tokens,
    "log key": lambda: EVENT_KEY,
    "log value": lambda: encode_row(EVENT_KEY, LogRow((EVENT,))),
}


def shown(label: str) -> bytes:
    """The bytes of a block; what stands behind a bar explains them."""
    (block,) = [each for each in blocks(FORMAT) if (each.language, each.label) == ("hex", label)]
    return bytes.fromhex("".join(line.partition("|")[0] for line in block.text.splitlines()))


def column(heading: str, number: int) -> list[str]:
    """A column of the first table below a heading, its code marks dropped."""
    part = TEXT.partition(f"\n{heading}\n")[2].partition("\n#")[0]
    rows = [line.split("|")[1:-1] for line in part.splitlines() if line.startswith("|")]
    return [row[number].strip().strip("`") for row in rows[2:]]


@pytest.mark.parametrize("label", BYTES)
def test_the_bytes_are_what_the_code_makes(label: str) -> None:
    assert shown(label) == BYTES[label]()


def test_every_block_of_bytes_is_compared() -> None:
    labels = {block.label for block in blocks(FORMAT) if block.language == "hex"}
    assert labels == {*BYTES, "page file trailer"}


def test_the_page_file_is_what_the_tier_writes(tmp_path: Path) -> None:
    ram, disk = RamTier(), DiskTier(tmp_path)
    frame = ram.allocate(5000)
    try:
        os.pwrite(frame.fd, b"a" * 5000, 0)
        ram.seal(frame, 5000)
        manifest: Manifest = ram.hash(frame)
        disk.store(PAGE_FILE_ID, frame.fd, manifest)
    finally:
        ram.discard(frame)
    path = f"pages/cb/{PAGE_FILE_ID.hex()}.page"
    assert f"`{path}`" in TEXT
    content = (tmp_path / path).read_bytes()
    assert content[:8192] == b"a" * 5000 + bytes(3192)
    assert content[8192:] == shown("page file trailer")
    assert f"a file of {len(content):,} bytes" in TEXT


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row.__name__)
def test_the_fields_are_the_rows(row: type[msgspec.Struct]) -> None:
    assert tuple(column(f"### {row.__name__}", 1)) == row.__struct_fields__
    positions = [str(number) for number in range(len(row.__struct_fields__))]
    assert column(f"### {row.__name__}", 0) == positions


def test_the_fields_of_a_kv_header_are_its_own() -> None:
    section = TEXT.partition("## Activation payloads\n")[2].partition("\n## ")[0]
    named = re.findall(r"^\| `(\w+)` \|", section, re.MULTILINE)
    assert tuple(named) == KvHeader.__struct_fields__ + KvLayers.__struct_fields__
    assert all(f"`{dtype}`" in section for dtype in KvDtype)
    assert f"{KV_TOKENS_MAX:,}" in section
    assert f"made of {KV_CHAIN_MAX} parts" in section.replace("\n", " ")


def test_the_fields_of_a_lora_header_are_its_own() -> None:
    section = TEXT.partition("## Parametric payloads\n")[2].partition("\n## ")[0]
    assert tuple(re.findall(r"^\| `(\w+)` \|", section, re.MULTILINE)) == (
        LoraHeader.__struct_fields__
    )
    assert f"at most {HEADER_MAX_BYTES >> 20} MiB" in section


def test_the_planes_of_the_example_are_the_layout() -> None:
    heading = "### Planes of the example"
    rows = zip(*(column(heading, number) for number in range(4)), strict=True)
    kinds = {False: "keys", True: "values"}
    assert list(rows) == [
        (str(p.layer), kinds[p.is_value], str(p.head), f"{p.offset_bytes:,}") for p in planes_of(KV)
    ]
    assert f"It ends at {layout_of(KV).size_bytes:,}." in TEXT
    assert (layout_of(KV).grain_tokens, layout_of(KV).capacity_tokens) == (16, 16)


def test_the_databases_are_the_tables() -> None:
    assert [name for name in column("## The table", 0) if name] == list(TABLES)


def test_the_sizes_are_the_limits() -> None:
    assert f"({FRAME_MAX_BYTES:,} bytes)" in TEXT
    assert f"({PAGE_BYTES:,} bytes)" in TEXT


def test_the_schema_is_the_index_file(tmp_path: Path) -> None:
    index = RecallIndex(tmp_path / "index.db")
    index.open()
    index.close()
    with sqlite3.connect(tmp_path / "index.db") as db:
        made = [sql for (sql,) in db.execute("SELECT sql FROM sqlite_schema WHERE sql NOT NULL")]
        marks = [db.execute(f"PRAGMA {mark}").fetchone()[0] for mark in MARKS]
    db.close()
    (block,) = [each for each in blocks(FORMAT) if each.language == "sql"]
    wanted = [" ".join(part.split()) for part in block.text.split(";") if part.strip()]
    assert wanted == [" ".join(sql.split()) for sql in made]
    assert f"(application id `{marks[0]:#x}`, user version {marks[1]})" in TEXT


MARKS = ("application_id", "user_version")


@pytest.mark.slow
def test_the_directory_holds_what_is_listed(tmp_path: Path) -> None:
    listed = set(re.findall(r"^\| `([\w.-]+)/?`(?:, `([\w.-]+)`)? \|", _directory(), re.MULTILINE))
    names = {name for pair in listed for name in pair if name}
    with private_daemon(tmp_path) as daemon:
        daemon.start()
        with daemon.connect() as client:
            client.make_namespace("/notes")
            client.write(NAME, PAYLOAD)
            client.search("kernel")
        found = {path.name for path in daemon.data_dir.iterdir()}
        daemon.stop()
    assert found == names - {"table.mdb.new"}


def _directory() -> str:
    return TEXT.partition("## Data directory\n")[2].partition("\n## ")[0]
