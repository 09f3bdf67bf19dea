"""The demo tells the truth, says so with status 0, and with status 1 when it would not."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from libmem.abi.errors import MemError
from memosd.tools.demo import __main__ as demo
from memosd.tools.demo.documents import LIBRARY, Document, gather
from memosd.tools.demo.stage import Stage
from memosd.tools.models.cache import find_model
from memosd.tools.models.catalogue import SMOLLM2

_LEFT_OUT = ["left out: it needs a model"]
_READ = [
    "✓ what it computed is one memory (cache)",
    "✓ each gave the answer that it gives from nothing",
    "copies of it among them",
]


def test_documents_are_texts_with_names_of_their_own() -> None:
    documents = gather()
    assert documents
    assert len({document.name for document in documents}) == len(documents)
    for document in documents:
        assert document.name.startswith(f"{LIBRARY}/")
        assert document.text == document.path.read_bytes()
        assert document.text.decode()


def test_a_claim_that_is_not_true_ends_the_demo(capsys: pytest.CaptureFixture[str]) -> None:
    with Stage() as stage:
        stage.verify(True, "water is wet")
        with pytest.raises(MemError, match="the moon is made of cheese"):
            stage.verify(False, "the moon is made of cheese")
        assert stage.verified == 1
    out = capsys.readouterr().out
    assert "✓ water is wet" in out
    assert "✗ the moon is made of cheese" in out


def words_about_a_model() -> list[str]:
    """What the demo says of the step that needs one."""
    try:
        find_model(SMOLLM2)
    except MemError:
        return _LEFT_OUT
    return _READ


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_the_whole_demo(tmp_path: Path) -> None:
    environment = {name: value for name, value in os.environ.items() if "COLOR" not in name}
    done = subprocess.run(
        [sys.executable, "-m", "memosd.tools.demo"],
        capture_output=True,
        text=True,
        timeout=280,
        env={**environment, "TMPDIR": str(tmp_path)},
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stderr == ""
    assert "All of it was true" in done.stdout
    assert "✗" not in done.stdout
    assert [words for words in words_about_a_model() if words not in done.stdout] == []
    assert "\x1b" not in done.stdout  # no terminal, no colour
    assert list(tmp_path.iterdir()) == []  # nothing is left behind


@pytest.mark.slow
def test_a_missing_document_is_noticed(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    forgotten = Document(f"{LIBRARY}/forgotten", Path("/nowhere"), b"never written")
    monkeypatch.setattr(demo, "gather", lambda: [*gather(), forgotten])
    assert demo.main() == 1
    out, err = capsys.readouterr()
    assert "✗" in out
    assert "not as told" in err


@pytest.mark.slow
def test_a_daemon_that_cannot_start_is_reported(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    # A child finds no memosd when its interpreter is one that only fails.
    broken = tmp_path / "python"
    broken.write_text("#!/bin/sh\necho no such thing >&2\nexit 3\n")
    broken.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(broken))
    assert demo.main() == 1
    out, err = capsys.readouterr()
    assert "the daemon ended with 3" in err
    assert "no such thing" in out
