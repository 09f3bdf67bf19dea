"""Run a piece of Python in a fresh interpreter, as an unrelated program of the user's would be."""

import subprocess
import sys
from pathlib import Path

__all__ = ["ROOT", "run_script", "start_script"]

ROOT = Path(__file__).parents[2]
_PATIENCE_S = 60.0


def start_script(source: str, *arguments: object) -> "subprocess.Popen[str]":
    """Start it with pipes at both ends; warnings are errors there too."""
    command = [sys.executable, "-W", "error", "-c", source, *map(str, arguments)]
    pipe = subprocess.PIPE
    return subprocess.Popen(command, cwd=ROOT, stdin=pipe, stdout=pipe, stderr=pipe, text=True)


def run_script(source: str, *arguments: object) -> str:
    """What it printed. It must end well, and without a word on stderr."""
    with start_script(source, *arguments) as process:
        output, errors = process.communicate(timeout=_PATIENCE_S)
    assert (process.returncode, errors) == (0, "")
    return output
