"""Client processes that run a model, made in milliseconds.

They are forked from one process that has imported transformers and nothing else: no test's own
process needs it. A program is a few lines of Python with `client`, `say(value)`, `hear()` and what
`modelwork` offers; values travel pickled.
"""

import importlib.util
import multiprocessing
import os
import sys
import traceback
from multiprocessing.connection import Connection
from types import TracebackType
from typing import Any

import pytest

from tests.e2e.daemon import PATIENCE_S, Daemon

__all__ = ["ModelProcess", "require_transformers"]

_PRELUDE = """
import copy, gc, os, time
import torch
import libmem
import libmem.hf
from libmem.abi import calls as c
from tests.e2e.modelwork import *
from tests.libmem.hf.models import make_model, prompt

TEXT = prompt(100)
MORE = prompt(30, seed=1)
LONGER = torch.cat([TEXT, MORE], 1)

def errno_of(call, *args, **kwargs):
    try:
        call(*args, **kwargs)
    except libmem.MemError as error:
        return error.errno.name
    return "OK"
"""


def require_transformers() -> None:
    """Skip the test where the extra `models` is not installed."""
    if importlib.util.find_spec("transformers") is None:
        pytest.skip("transformers is not installed")


class ModelProcess:
    """One such process. A context manager: it is killed at the block's end if it still runs."""

    def __init__(
        self, daemon: Daemon, program: str, *, uid: int = -1, timeout_s: float = PATIENCE_S
    ) -> None:
        """`uid`: run as that user, in the group of the same number; `timeout_s`: the client's."""
        context = multiprocessing.get_context("forkserver")
        context.set_forkserver_preload(["tests.e2e.modelwork"])
        self._pipe, theirs = context.Pipe()
        arguments = (theirs, program, str(daemon.runtime_dir), uid, timeout_s)
        self._process = context.Process(target=_run, args=arguments, daemon=True)
        self._process.start()
        theirs.close()

    def __enter__(self) -> "ModelProcess":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.kill()
        self._pipe.close()

    def hear(self) -> Any:
        """The next value that it says; its end is a failure."""
        assert self._pipe.poll(PATIENCE_S), "it says nothing"
        try:
            return self._pipe.recv()
        except EOFError:
            self._process.join(PATIENCE_S)
            raise AssertionError(f"it ended with status {self._process.exitcode}") from None

    def tell(self, value: Any = None) -> None:
        """Say something to it."""
        self._pipe.send(value)

    def kill(self) -> None:
        """End it at once."""
        self._process.kill()
        self._process.join(PATIENCE_S)

    def end(self) -> None:
        """Wait for its good end."""
        self._process.join(PATIENCE_S)
        assert self._process.exitcode == 0


def _run(pipe: Connection, program: str, runtime_dir: str, uid: int, timeout_s: float) -> None:
    import torch

    import libmem

    torch.set_num_threads(1)  # makes torch's pool again, which a fork breaks, before any thread is
    if uid >= 0:
        os.setgroups([uid])
        os.setresgid(uid, uid, uid)
        os.setresuid(uid, uid, uid)
    client = libmem.connect(runtime_dir, timeout_s=timeout_s)
    names = {"client": client, "say": pipe.send, "hear": pipe.recv}
    try:
        exec(_PRELUDE + program, names)  # noqa: S102
    except BaseException:
        traceback.print_exc()
        sys.stderr.flush()
        raise
