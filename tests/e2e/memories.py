"""What the tests of memories look at: texts in their order, versions, whether all is embedded."""

import libmem
from libmem.abi.structs import SearchMode
from tests.e2e.daemon import eventually

__all__ = ["PARAGRAPH", "only", "place", "settle", "snapshot", "texts"]

PARAGRAPH = (
    "The lapwing builds its nest on open ground, a shallow scrape lined with grass, and lays four "
    "eggs in it; both birds sit on them for some weeks, and both of them drive crows and gulls off "
    "with loud cries and steep dives, which is how people walking over a field notice them first."
)


def texts(client: libmem.Client, folder: str) -> list[str]:
    """What lies below a folder, in its order."""
    stats = sorted(client.list(folder, is_recursive=True), key=place)
    return [client.read(stat.name).decode() for stat in stats]


def place(stat: libmem.Stat) -> tuple[str, int]:
    return stat.descriptive.session, stat.descriptive.position


def snapshot(client: libmem.Client) -> dict[str, int]:
    """Name -> version of all that is there."""
    return {stat.name: stat.version for stat in client.list("/t", is_recursive=True)}


def only(client: libmem.Client, folder: str = "/t") -> libmem.Stat:
    """The one cube below a folder."""
    (stat,) = client.list(folder, is_recursive=True)
    return stat


def settle(client: libmem.Client) -> None:
    """Wait until the index knows everything and everything has its vectors."""

    def is_settled() -> bool:
        try:
            client.search("settled", mode=SearchMode.WORDS)
        except libmem.MemError:
            return False  # it is being rebuilt
        recall = client.info().recall
        return bool(recall.embedder) and recall.waiting == 0

    eventually(is_settled, "everything is embedded")
