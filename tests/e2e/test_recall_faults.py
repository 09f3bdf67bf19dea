"""Recall when a model, a worker or the index's file lets it down: nothing is lost, one notice."""

import json
import os
import shutil
import signal
import time
from pathlib import Path

import pytest

import libmem
from libmem.abi.calls import Search, SearchReply, WriteCube
from libmem.abi.structs import SearchMode
from tests.e2e.daemon import Daemon, eventually
from tests.e2e.memories import settle

TEXTS = {
    "/t/pet": "I adopted a kitten from the shelter.",
    "/t/car": "My car broke down on the motorway.",
    "/t/food": "The pasta at the Italian place is superb.",
}


@pytest.fixture
def daemon(idle: Daemon, minilm: Path) -> Daemon:
    """A running daemon with a model and three texts."""
    idle.embedder = str(minilm)
    idle.start()
    with idle.connect() as client:
        client.make_namespace("/t")
        for name, text in TEXTS.items():
            client.write(name, text)
        settle(client)
    return idle


def ask(client: libmem.Client, query: str, mode: SearchMode = SearchMode.HYBRID) -> SearchReply:
    return client.call(Search(query, under="/t", mode=mode, wait_ms=60_000), timeout_s=70)


def check(client: libmem.Client) -> None:
    """All three are found by meaning."""
    for query, name in (("a pet", "/t/pet"), ("a vehicle", "/t/car"), ("dinner", "/t/food")):
        reply = ask(client, query)
        assert reply.notice == ""
        assert reply.hits[0].name == name


def worker(client: libmem.Client) -> int:
    """The worker's process id, once it works."""
    eventually(
        lambda: any(each.state in ("idle", "busy") for each in client.info().workers),
        "the worker works",
    )
    return client.info().workers[0].pid


# -- the worker ------------------------------------------------------------------------------------


def test_a_worker_killed_in_the_middle_of_a_backlog_loses_nothing(daemon: Daemon) -> None:
    with daemon.connect() as client:
        calls = [WriteCube(f"/t/n{n}", f"Number {n}. It is a number.".encode()) for n in range(600)]
        client.batch(calls)
        eventually(lambda: 0 < client.info().recall.waiting < 600, "the backlog is begun")
        os.kill(worker(client), signal.SIGKILL)
        assert len(ask(client, "number", SearchMode.WORDS).hits) == 10, "words are always there"
        settle(client)
        check(client)
        stat = client.info().workers[0]
        assert stat.restarts == 1


def test_a_worker_that_hangs_holds_no_search_up(daemon: Daemon) -> None:
    with daemon.connect() as client:
        pid = worker(client)
        os.kill(pid, signal.SIGSTOP)
        reply = client.call(Search("kitten", under="/t", wait_ms=200))
        assert [hit.name for hit in reply.hits] == ["/t/pet"]
        assert reply.notice == "ranked by words alone: no vector within 200 ms"
        client.write("/t/new", "Written all the same.")
        os.kill(pid, signal.SIGCONT)
        settle(client)
        check(client)


# -- the model -------------------------------------------------------------------------------------


@pytest.mark.parametrize("fault", ["missing", "truncated", "no json"])
def test_a_model_that_cannot_be_loaded_leaves_words(
    idle: Daemon, minilm: Path, tmp_path: Path, fault: str
) -> None:
    folder = tmp_path / "model"
    if fault != "missing":
        shutil.copytree(minilm, folder)
    if fault == "truncated":
        weights = next(folder.glob("*.safetensors"))
        os.truncate(weights, weights.stat().st_size // 2)
    if fault == "no json":
        (folder / "config.json").write_text("{")
    idle.embedder = str(folder)
    idle.start()
    with idle.connect() as client:
        client.make_namespace("/t")
        client.write("/t/pet", TEXTS["/t/pet"])
        eventually(lambda: "no worker can begin" in client.info().recall.problem, "it is told")
        reply = client.call(Search("kitten", under="/t"))
        assert [hit.name for hit in reply.hits] == ["/t/pet"]
        assert reply.notice.startswith("ranked by words alone: no worker can begin: ")
        assert str(folder) in reply.notice
        # It is mended while the daemon runs.
        shutil.rmtree(folder, ignore_errors=True)
        shutil.copytree(minilm, folder)
        settle(client)
        assert ask(client, "a pet").hits[0].name == "/t/pet"


@pytest.fixture
def small_model(minilm: Path, tmp_path: Path) -> Path:
    """An encoder of 32 dimensions with random weights and MiniLM's tokenizer."""
    transformers = pytest.importorskip("transformers")
    folder = tmp_path / "small"
    config = json.loads((minilm / "config.json").read_text())
    config |= {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
    config |= {"intermediate_size": 64}
    model = transformers.BertModel(transformers.BertConfig(**config))
    model.save_pretrained(folder)
    for name in ("tokenizer.json", "tokenizer_config.json", "vocab.txt", "special_tokens_map.json"):
        if (minilm / name).exists():
            shutil.copy(minilm / name, folder)
    return folder


def test_another_model_replaces_all_vectors(
    daemon: Daemon, minilm: Path, small_model: Path
) -> None:
    with daemon.connect() as client:
        before = client.info().recall.embedder
    daemon.stop()
    daemon.embedder = str(small_model)
    daemon.start()
    with daemon.connect() as client:
        client.write("/t/new", "A text that needs a vector, so that the worker starts.")
        eventually(lambda: client.info().recall.embedder != before, "the model is another")
        settle(client)
        reply = ask(client, "kitten")
        assert (reply.hits[0].name, reply.notice) == ("/t/pet", "")
    daemon.stop()
    daemon.embedder = str(minilm)
    daemon.start()
    with daemon.connect() as client:
        client.unlink("/t/new")
        ask(client, "wake up")
        eventually(lambda: client.info().recall.embedder == before, "the first model is back")
        settle(client)
        check(client)


@pytest.mark.timeout(300)
def test_a_model_replaced_under_two_workers(
    idle: Daemon, minilm: Path, small_model: Path, tmp_path: Path
) -> None:
    """One of them begins again, with the new model; the other one does not fight it."""
    folder = tmp_path / "model"
    shutil.copytree(minilm, folder)
    idle.embedder = str(folder)
    idle.config = "[workers]\ncount = 2\n"
    idle.start()
    with idle.connect() as client:
        client.make_namespace("/t")
        for number in range(300):
            client.write(f"/t/n{number}", f"Number {number}. It is a number.")
        settle(client)
        before = client.info().recall.embedder
        old = {each.pid for each in client.info().workers}
        assert len(old) == 2
        shutil.rmtree(folder)
        shutil.copytree(small_model, folder)
        os.kill(min(old), signal.SIGKILL)

        def is_replaced() -> bool:
            client.call(Search("number", wait_ms=100))  # queries go to either
            client.write("/t/more", f"More at {time.monotonic()}.")
            info = client.info()
            running = {each.pid for each in info.workers if each.state in ("idle", "busy")}
            return info.recall.embedder != before and len(running - old) == 2

        eventually(is_replaced, "both have the new model")
        settle(client)
        assert client.info().recall.embedder != before
        assert ask(client, "number 7").notice == ""


# -- the index's file ------------------------------------------------------------------------------


def index_file(daemon: Daemon) -> Path:
    return daemon.data_dir / "index.db"


@pytest.mark.parametrize("fault", ["deleted", "overwritten", "truncated"])
def test_an_index_lost_while_the_daemon_was_down_is_made_anew(daemon: Daemon, fault: str) -> None:
    daemon.stop()
    path = index_file(daemon)
    if fault == "deleted":
        path.unlink()
    elif fault == "overwritten":
        path.write_bytes(os.urandom(path.stat().st_size))
    else:
        os.truncate(path, path.stat().st_size // 2)
    daemon.start()
    with daemon.connect() as client:
        settle(client)
        check(client)


def test_an_index_damaged_under_a_running_daemon_is_made_anew(daemon: Daemon) -> None:
    with daemon.connect() as client:
        for number in range(300):
            client.write(f"/t/n{number}", f"Note {number}: " + "many words of no meaning " * 40)
        settle(client)
        with index_file(daemon).open("r+b") as file:
            size = file.seek(0, os.SEEK_END)
            for at in range(4096, size, 4096):
                file.seek(at)
                file.write(os.urandom(512))
        # SQLite has pages of its own in memory; sooner or later it reads one from the file.
        settle(client)
        check(client)


def test_vectors_survive_a_kill(daemon: Daemon) -> None:
    os.kill(daemon.pid, signal.SIGKILL)
    daemon.wait_for_end()
    daemon.start()
    with daemon.connect() as client:
        client.search("settled", mode=SearchMode.WORDS)
        recall = client.info().recall
        assert (recall.waiting, recall.passages) == (0, 3)
        check(client)


def test_a_full_disk_leaves_what_is_indexed(idle: Daemon) -> None:
    idle.start()
    with idle.connect() as client:
        client.make_namespace("/t")
        client.write("/t/old", "a heron")
        assert [hit.name for hit in client.search("heron", mode=SearchMode.WORDS)] == ["/t/old"]
    idle.stop()
    idle.start("index.commit.before=enospc")
    with idle.connect() as client:
        client.write("/t/new", "a heron")
        for _ in range(3):
            reply = ask(client, "heron", SearchMode.WORDS)
            assert [hit.name for hit in reply.hits] == ["/t/old"]
            assert reply.notice.startswith("behind: not all that was written is found: ")
    idle.stop()
    idle.start()
    with idle.connect() as client:
        reply = ask(client, "heron", SearchMode.WORDS)
        assert (sorted(hit.name for hit in reply.hits), reply.notice) == (["/t/new", "/t/old"], "")
