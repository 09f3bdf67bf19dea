"""The daemon goes while a model generates, comes back, or does not; and conversations that last."""

import os
import signal

import pytest

from libmem.abi.errors import Errno, MemError
from libmem.abi.kv import KV_CHAIN_MAX
from tests.e2e.daemon import Daemon, eventually
from tests.e2e.modelprocess import ModelProcess, require_transformers

NEVER = "[behaviour]\nwriteback_delay_s = 86400\n"
"""Cache payloads stay in RAM until they are asked to disk."""


@pytest.fixture(autouse=True)
def _transformers() -> None:
    require_transformers()


@pytest.fixture
def keeping(idle: Daemon) -> Daemon:
    """A daemon that writes nothing back by itself."""
    idle.config = NEVER
    idle.start()
    with idle.connect() as client:
        client.make_namespace("/t")
    return idle


GENERATE = """
from transformers import StoppingCriteria

class Pause(StoppingCriteria):
    seen = 0

    def __call__(self, input_ids, scores, **kwargs):
        self.seen += 1
        if self.seen == 3:
            say("in the middle")
            hear()
        return torch.zeros(len(input_ids), dtype=torch.bool)

model = make_model("llama")
texts = {"short": TEXT, "long": LONGER}
plain = {name: answer(model, text) for name, text in texts.items()}
attached = attach(model, client)
stats = attached.stats
while word := hear():
    attached._shelf._away_until = 0.0  # it is a long time until the next question
    hits, stored, problems = stats.hits, stats.stored, stats.problems
    options = {"stopping_criteria": [Pause()]} if word == "long" else {}
    text = ask(attached, model, texts[word], **options)
    counts = (stats.hits - hits, stats.stored - stored, stats.problems - problems)
    say((text == plain[word], *counts))
"""
HIT, STORED, FAILED = (True, 1, 0, 0), (True, 0, 1, 0), (True, 0, 0, 1)


def _ask(process: ModelProcess) -> object:
    """What a generation came to."""
    process.tell("short")
    return process.hear()


def test_the_daemon_is_killed_in_the_middle(keeping: Daemon) -> None:
    with ModelProcess(keeping, GENERATE, timeout_s=10) as process:
        assert _ask(process) == STORED
        process.tell("long")
        assert process.hear() == "in the middle"  # it stands on what is mapped
        keeping.restart()
        process.tell()
        # What it stood on is lost, so it cannot be stored either.
        assert process.hear() == (True, 1, 0, 1)
        assert _ask(process) == STORED
        assert _ask(process) == HIT
        process.tell("")
        process.end()


def test_the_daemon_is_gone_for_good(keeping: Daemon) -> None:
    with ModelProcess(keeping, GENERATE, timeout_s=3600) as process:
        assert _ask(process) == STORED
        keeping.stop()
        assert [_ask(process) for _ in range(3)] == [FAILED] * 3
        keeping.start()
        eventually(lambda: _ask(process) == HIT, "it looks again, and what was written is there")
        process.tell("")
        process.end()


def test_the_daemon_says_nothing(keeping: Daemon) -> None:
    with ModelProcess(keeping, GENERATE, timeout_s=3600) as process:
        assert _ask(process) == STORED
        os.kill(keeping.pid, signal.SIGSTOP)
        try:
            assert [_ask(process) for _ in range(2)] == [FAILED] * 2
        finally:
            os.kill(keeping.pid, signal.SIGCONT)
        eventually(lambda: _ask(process) == HIT, "it looks again")
        process.tell("")
        process.end()


def test_another_store_takes_its_place(keeping: Daemon) -> None:
    with ModelProcess(keeping, GENERATE) as process:
        assert _ask(process) == STORED
        keeping.kill()
        keeping.data_dir = keeping.folder / "other"
        keeping.start()
        assert [_ask(process) for _ in range(2)] == [STORED, HIT]
        process.tell("")
        process.end()


def test_a_damaged_prefix_is_computed_and_stored_again(keeping: Daemon) -> None:
    with keeping.connect() as client, ModelProcess(keeping, GENERATE) as process:
        assert _ask(process) == STORED
        (cube,) = client.list("/t", is_recursive=True)
        client.evict(cube.name)
        (file,) = keeping.page_files()
        with file.open("r+b") as payload:
            payload.seek(5000)
            payload.write(b"damage")
        assert [_ask(process) for _ in range(3)] == [FAILED, STORED, HIT]
        process.tell("")
        process.end()


CHAT = """
model = make_model("llama")
said = prompt(70, seed=100)
turns = hear()
texts = []
with attach(model, client) as attached:
    for turn in range(turns):
        texts.append(said)
        said = torch.tensor([ask(attached, model, said, max_new_tokens=5)])
        said = torch.cat([said, prompt(60, seed=turn)], 1)
    say((attached.stats.hits, attached.stats.stored, attached.stats.problems))
    last = texts[-1]
    found = find(client, model, last)
    own = prefill(model, last[:, : found.tokens])
    say((found.name, found.tokens == last.shape[1]))
    while name := hear():
        mapped = libmem.hf.map_cache(client, name, model, tokens=found.tokens, token_ids=last)
        torch.testing.assert_close(mapped.layers[0].keys, own.layers[0].keys)
        rows = digest(mapped), logits(model, mapped, MORE).sum().item(), mapped.prefix.parts_count
        mapped = None
        client.post_released()
        say(rows)
"""


def test_a_conversation_outlives_memory_and_daemon(idle: Daemon) -> None:
    turns = KV_CHAIN_MAX + 4
    idle.start()
    with idle.connect() as client, ModelProcess(idle, CHAT) as chat:
        client.make_namespace("/t")
        chat.tell(turns)
        assert chat.hear() == (turns - 1, turns, 0)
        cubes = sorted(
            client.list("/t", is_recursive=True), key=lambda cube: cube.attributes["kv"]["tokens"]
        )
        starts = [cube.attributes["kv"].get("start", 0) for cube in cubes]
        whole = [turn for turn, start in enumerate(starts) if start == 0]
        assert whole == [0, KV_CHAIN_MAX]
        assert [cube.parents[0].partition("@")[0] for cube in cubes[1:KV_CHAIN_MAX]] == [
            cube.name for cube in cubes[: KV_CHAIN_MAX - 1]
        ]
        name, is_whole = chat.hear()
        assert (name, is_whole) == (f"{cubes[-1].name}@v1", True)
        chat.tell(name)
        rows = chat.hear()
        assert rows[2] == turns - KV_CHAIN_MAX
        for cube in cubes:
            client.evict(cube.name)
        idle.restart()
        assert not any(client.stat(cube.name).tiers == ("ram",) for cube in cubes)
        chat.tell(name)
        assert chat.hear() == rows
        chat.tell("")
        chat.end()
        client.unlink(cubes[KV_CHAIN_MAX].name)
        client.unlink(cubes[0].name)
        assert not list(client.list("/t", is_recursive=True))
        with pytest.raises(MemError) as gone:
            client.stat(cubes[3].name)
        assert gone.value.errno is Errno.ENOENT
        eventually(lambda: not idle.page_files(), "the page files are gone")
