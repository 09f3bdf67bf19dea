"""Costs over a real daemon: a disk that is slow, and what is then loaded and what computed."""

from pathlib import Path

import libmem
from libmem import CubeType
from libmem.abi.calls import PlanReply, ReportPrefill
from libmem.abi.costs import CostStat, PrefillSample
from libmem.abi.kv import KvHeader, pack_tokens
from memosd.drivers.tiers.throttled import VARIABLE, Speed
from tests.caches import MODEL, attributes_of, header_of, payload_of, wavy
from tests.e2e.daemon import Daemon

HEADER = header_of(1000, stored=None)
TOKENS = list(range(1000))
SLOW = Speed(0.3)


def store(client: libmem.Client, name: str, header: KvHeader = HEADER) -> None:
    payload = payload_of(header, wavy)
    fill = client.create(
        name, len(payload), type=CubeType.ACTIVATION, attributes=attributes_of(header)
    )
    fill.copy_in(payload)
    fill.seal()
    client.evict(name)


def load(client: libmem.Client, name: str) -> None:
    with client.map(name):
        pass
    client.post_released()


def costs(client: libmem.Client) -> dict[str, CostStat]:
    return {stat.name: stat for stat in client.info().costs}


def plan(client: libmem.Client, tokens: bytes) -> PlanReply:
    return client.plan_prefix(MODEL, tokens, prompt_tokens=1010)


def test_a_slow_disk_is_found_out_and_remembered(daemon: Daemon, tmp_path: Path) -> None:
    speed_path = tmp_path / "speed"
    SLOW.write(speed_path)
    daemon.environment[VARIABLE] = str(speed_path)
    daemon.restart()
    samples = tuple(PrefillSample(tokens=tokens, seconds=tokens * 1e-5) for tokens in (1000, 20))
    with daemon.connect() as client:
        for name in ("/t/a", "/t/b"):
            store(client, name)
        tokens = pack_tokens(TOKENS)
        assert plan(client, tokens).load_tokens == len(TOKENS), "nothing was measured"
        for name in ("/t/a", "/t/b"):
            load(client, name)
            client.evict(name)
        assert client.call(ReportPrefill(MODEL, samples * 4)).taken == 8
        known = costs(client)
        assert known["disk load"].is_measured
        made = plan(client, tokens)
        assert (made.load_name, made.load_tokens) == ("", 0)
        assert made.load_s > 0.2 > made.compute_s
        samples_before = known["disk load"].samples
    daemon.stop()
    daemon.start()
    with daemon.connect() as client:
        known = costs(client)
        assert known["disk load"].samples == samples_before
        assert known["prefill"].samples == 8
        assert plan(client, tokens).load_tokens == 0
