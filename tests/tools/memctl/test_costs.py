"""costs: what was measured, in units for people."""

from libmem.abi.calls import Info
from libmem.abi.costs import CostStat
from tests.tools.memctl.fake import Memctl
from tests.tools.memctl.test_daemon import make_info

COSTS = (
    CostStat("disk load", True, 12, 0, latency_s=0.0042, bytes_per_s=float(96 << 20)),
    CostStat("prefill", False, 1, 0, tokens_per_s=1234.4, model="ab" * 32, uid=0),
    CostStat("map", True, 9, 0, latency_s=0.0031, model="ab" * 32, uid=0),
)


def test_costs(memctl: Memctl) -> None:
    answers = {Info: make_info(costs=COSTS)}
    _, load, prefill, mapping = memctl("costs", answers=answers).out.splitlines()
    assert load.split()[:7] == ["disk", "load", "4.2", "ms", "96.0", "MiB/s", "12"]
    assert prefill.split() == [
        "prefill", "0", "ms", "1,234", "tokens/s", "1", "a", "guess", "-", "root", "abababababab",
    ]  # fmt: skip
    assert mapping.split()[:4] == ["map", "3.1", "ms", "-"]
    shown = memctl("costs", "--json").lines
    assert [each["name"] for each in shown] == ["disk load", "prefill", "map"]


def test_nothing_was_measured_yet(memctl: Memctl) -> None:
    assert memctl("costs", "--json", answers={Info: make_info()}).lines == []
