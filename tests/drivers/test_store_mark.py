"""The mark beside an open table: which deaths send a probe ahead at the next start."""

import signal
from pathlib import Path

import pytest

from memosd.drivers.store import LmdbStore
from tests.drivers.memory import in_tiny_file_system, python

pytestmark = pytest.mark.usefixtures("no_descriptor_is_left")

TABLES = ("meta", "cubes")
MIB = 1 << 20

DIE = """
import os, signal, sys
from pathlib import Path
from memosd.drivers.store import LmdbStore
store = LmdbStore(Path(sys.argv[1]), ("meta", "cubes"), 1 << 24)
if sys.argv[2] != "starting":
    store.booted()
os.kill(os.getpid(), int(sys.argv[3]))
"""


@pytest.mark.parametrize(
    ("state", "number", "reasons"),
    [
        ("starting", signal.SIGKILL, ["the last start did not end"]),
        ("serving", signal.SIGKILL, []),
        ("serving", signal.SIGBUS, ["Fatal Python error: Bus error"]),
        ("serving", signal.SIGABRT, ["Fatal Python error: Aborted"]),
    ],
)
def test_all_is_read_again_only_after_a_death_that_the_table_may_have_caused(
    tmp_path: Path, state: str, number: int, reasons: list[str]
) -> None:
    path = tmp_path / "table.mdb"
    assert python(DIE, str(path), state, str(int(number))).returncode == -number
    told: list[str] = []
    LmdbStore(path, TABLES, 16 * MIB, told.append).close()
    assert told[:1] == reasons
    told.clear()
    LmdbStore(path, TABLES, 16 * MIB, told.append).close()
    assert told == []


def test_a_disk_too_full_for_a_mark_is_no_obstacle() -> None:
    filled = in_tiny_file_system(
        """
from pathlib import Path
from memosd.drivers.store import LmdbStore
LmdbStore(Path("/mnt/table.mdb"), ("cubes",), 1 << 24).close()
Path("/mnt/table.mdb.open").touch()
try:
    Path("/mnt/ballast").write_bytes(bytes(1 << 20))
except OSError:
    pass
store = LmdbStore(Path("/mnt/table.mdb"), ("cubes",), 1 << 24)
store.booted()
print(store.count("cubes"))
store.close()
""",
        MIB,
    )
    assert (filled.stdout, filled.returncode) == ("0\n", 0), filled.stderr
