"""memctl ingest: what it says of files that a real daemon takes."""

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

import libmem
from memosd.tools.bench.daemon import private_daemon
from memosd.tools.memctl.__main__ import main


@pytest.fixture(scope="module")
def runtime_dir(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A daemon with a namespace, for all tests of this file."""
    with private_daemon(tmp_path_factory.mktemp("data")) as daemon:
        daemon.start()
        with daemon.connect() as client:
            client.make_namespace("/n")
        yield daemon.runtime_dir
        daemon.stop()


@pytest.fixture
def source(tmp_path: Path) -> Path:
    """A folder with a document, a conversation and a picture."""
    (tmp_path / "a.md").write_text("# Birds\n\nSnipe fly up in zigzags.\n", encoding="utf-8")
    turns = [{"role": "user", "content": "hello"}, {"role": "assistant", "content": "hello"}]
    (tmp_path / "chat.json").write_text(json.dumps(turns), encoding="utf-8")
    (tmp_path / "picture.png").write_bytes(b"\x89PNG\r\n\x1a\n\0")
    return tmp_path


def test_a_folder_and_again(
    runtime_dir: Path, source: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    argv = ["ingest", str(source), "--under", "/n/one", "--runtime-dir", str(runtime_dir)]
    assert main(argv) == 0
    out, err = capsys.readouterr()
    assert out == "3 pieces written (34 B), 1 skipped\n"
    assert err == f"memctl: {source / 'picture.png'}: binary, not text\n"
    assert main([*argv, "--json"]) == 0
    out, err = capsys.readouterr()
    assert (json.loads(out)["unchanged"], err) == (3, "")


def test_files_and_their_options(
    runtime_dir: Path, source: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    common = ["--under", "/n/two", "--runtime-dir", str(runtime_dir)]
    argv = [str(source / "chat.json"), "--session", "monday", *common]
    assert main(["ingest", *argv]) == 0
    document = [str(source / "a.md"), "--format", "text", "--tag", "birds", *common]
    assert main(["ingest", *document, "--duplicates", "keep"]) == 0
    with libmem.connect(runtime_dir) as client:
        assert client.read("/n/two/monday/000001") == b"hello"
        (stat,) = client.list("/n/two/a.md")
        assert stat.descriptive.tags == ("birds",)
        assert client.read(stat.name).startswith(b"# Birds")
    capsys.readouterr()


def test_a_file_that_cannot_be_read_is_a_failure(
    runtime_dir: Path, source: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    common = ["--under", "/n/three", "--runtime-dir", str(runtime_dir)]
    assert main(["ingest", str(source / "missing"), *common]) == 2
    assert main(["ingest", str(source / "picture.png"), *common]) == 84
    assert main(["ingest", str(source), "--under", "/missing", *common[2:]]) == 2
    assert "/missing" in capsys.readouterr().err
