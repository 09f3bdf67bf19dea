"""What the documents show is what happens: their code runs against a real daemon.

    python    a program; a `text` block right below it is its whole output
    console   commands after "$ " and what they print; "..." stands for what differs each time;
              with `shape` behind it, numbers, units, bars and users differ as well
    sh        what changes the machine or waits: not run, but its targets, files and options exist

Each document has a daemon of its own, and its blocks run in their order.
"""

import doctest
import os
import pwd
import re
import shlex
import subprocess
import sys
import textwrap
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import pairwise
from pathlib import Path

import pytest

import libmem
from memosd.tools.bench.daemon import private_daemon
from memosd.tools.models.cache import find_model
from memosd.tools.models.catalogue import SMOLLM2
from tests.docs.markdown import DOCUMENTS, ROOT, Block, blocks, commands

PROGRAMS = {"memctl": "memosd.tools.memctl", "memosd": "memosd"}
PATIENCE_S = 60.0
RUN = {"python", "console"}
TRANSITIONS = """
[listen]
mode = "0600"
[transitions]
language_model = "{}"
dtype = "float32"
"""


def name(path: Path) -> str:
    """How a test is called."""
    return str(path.relative_to(ROOT))


WITH_EXAMPLES = [path for path in DOCUMENTS if RUN & {block.language for block in blocks(path)}]
SHELL = [
    pytest.param(line, id=f"{name(path)}:{block.line} {line}")
    for path in DOCUMENTS
    for block in blocks(path)
    if block.language == "sh"
    for line in block.text.splitlines()
]


@contextmanager
def world(folder: Path, config: str = "") -> Iterator[dict[str, str]]:
    """A daemon, and the environment of programs that find it and the documented commands."""
    programs = folder / "bin"
    programs.mkdir()
    for program, module in PROGRAMS.items():
        script = programs / program
        script.write_text(f'#!/bin/sh\nexec {sys.executable} -m {module} "$@"\n', encoding="utf-8")
        script.chmod(0o755)
    data = folder / "data"
    data.mkdir()
    with private_daemon(data, config=config) as daemon:
        daemon.start()
        yield {
            **os.environ,
            "MEMOSD_RUNTIME_DIR": str(daemon.runtime_dir),
            "PATH": f"{programs}:{os.environ['PATH']}",
            "COLUMNS": "100",
            "HF_HUB_DISABLE_PROGRESS_BARS": "1",
        }
        daemon.stop()


def assert_same(wanted: str, found: str) -> None:
    """Equal, but for "..." in what is wanted; any white space is as good as any other."""
    flags = doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE
    is_same = doctest.OutputChecker().check_output(wanted, found, flags)
    assert is_same, f"shown:\n{wanted}\nprinted:\n{found}"


def run_python(block: Block, behind: Block | None, environment: dict[str, str]) -> None:
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", block.text],
        env=environment,
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=PATIENCE_S,
        check=False,
    )
    assert (done.returncode, done.stderr) == (0, ""), f"line {block.line}"
    is_output = behind is not None and behind.language == "text" and behind.label == "output"
    assert_same(behind.text if behind is not None and is_output else "", done.stdout)


def run_console(block: Block, environment: dict[str, str]) -> None:
    for command in commands(block):
        done = subprocess.run(
            ["/bin/sh", "-c", command.text],
            env=environment,
            cwd=ROOT,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=PATIENCE_S,
            check=False,
        )
        if block.label == "shape":
            assert_same(shape(command.output), shape(done.stdout))
        else:
            assert_same(command.output, done.stdout)


def shape(text: str) -> str:
    """What is left of an output without what differs from run to run."""
    text = re.sub(r"[+-]\d\d:\d\d\b", "+00:00", text)  # the zone
    text = re.sub(r"\[?[#.]{8,}\]?", "BAR", text)
    text = re.sub(rf"\b{pwd.getpwuid(os.getuid()).pw_name}\b", "root", text)
    unit = r"(?:[KMGT]iB|B|ns|µs|ms|min|s|h|d|%)"
    text = re.sub(rf"(?:\d[\d,.]*(?:\s?{unit}(?![A-Za-z]))?\s?)+", "0 ", text)
    return re.sub(r"\b0 ([a-z]+?)s?\b", r"0 \1", text)


@pytest.mark.slow
@pytest.mark.parametrize("document", WITH_EXAMPLES, ids=name)
def test_examples_do_what_is_shown(
    document: Path, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    if "find_model" in document.read_text(encoding="utf-8"):
        request.getfixturevalue("smollm2")  # skips where it cannot be had
    config = TRANSITIONS.format(find_model(SMOLLM2)) if document.stem == "transitions" else ""
    with world(tmp_path, config) as environment:
        for block, behind in pairwise([*blocks(document), None]):
            if block is not None and block.language == "python":
                run_python(block, behind, environment)
            elif block is not None and block.language == "console":
                run_console(block, environment)


@pytest.mark.slow
def test_the_example_at_the_head_of_libmem_runs(tmp_path: Path) -> None:
    lines = (libmem.__doc__ or "").splitlines()
    text = textwrap.dedent("\n".join(line for line in lines if line.startswith("    ")))
    with world(tmp_path) as environment:
        shown = Block("text", "output", "The kernel boots.", 0)
        run_python(Block("python", "", text, 0), shown, environment)


def test_the_readme_has_examples() -> None:
    assert {block.language for block in blocks(ROOT / "README.md")} >= {"python", "console", "sh"}


def test_every_block_says_what_it_is() -> None:
    strange = {
        f"{name(path)}:{block.line}": block.language
        for path in DOCUMENTS
        for block in blocks(path)
        if block.language not in RUN | {"sh", "text", "hex", "sql"}
    }
    assert strange == {}


@pytest.mark.parametrize("line", SHELL)
def test_what_is_not_run_could_be(line: str) -> None:
    words = shlex.split(line, comments=True)
    if words[0] == "sudo":
        words = words[1:]
    if words[0] == "make":
        subprocess.run(["make", "-n", *words[1:]], cwd=ROOT, check=True, capture_output=True)
    if Path(words[0]).name == "memosd":
        options = [sys.executable, "-m", "memosd", *words[1:], "--check"]
        subprocess.run(options, cwd=ROOT, check=True, capture_output=True)
    missing = [word for word in words if word.startswith("etc/") and not (ROOT / word).exists()]
    assert missing == []
