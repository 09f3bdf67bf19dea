"""A worker as a process: its place in the system, its session, its end.

Owns what is asked of the operating system before a model is loaded: to die with the daemon, to be
the first to go when memory is short, to have a ceiling. Used by `__main__` and by workers with
another table of jobs.
"""

import argparse
import ctypes
import os
import resource
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Final

import libmem
from libmem import Client
from libmem.abi.calls import FinishJob
from libmem.abi.errors import Errno, MemError
from memosd.worker.loop import Loop, Table

__all__ = ["parser", "work"]

_PR_SET_PDEATHSIG: Final = 1
_OOM_SCORE: Final = 500
"""Of 1000; the daemon has 0 or less."""
_QUIET: Final = {
    "TOKENIZERS_PARALLELISM": "false",
    "TQDM_DISABLE": "1",
    "TRANSFORMERS_VERBOSITY": "error",
}
"""No threads of a tokenizer's own; no progress bars and advice in the daemon's log."""
_THREADS: Final = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "RAYON_NUM_THREADS")


def parser() -> argparse.ArgumentParser:
    """What the daemon tells a worker on its command line."""
    options = argparse.ArgumentParser(prog="memosd.worker", description="A worker of memosd.")
    options.add_argument("--parent", type=int, required=True, help="process id of the daemon")
    options.add_argument("--runtime-dir", type=Path, required=True)
    options.add_argument("--embedder", default="", help="a folder or a hub id")
    options.add_argument("--model", default="", help="a folder or a hub id")
    options.add_argument("--scratch-dir", type=Path, help="for work that may go on later")
    options.add_argument("--dtype", default="auto", help="as torch names it; auto: as it is stored")
    options.add_argument("--device", default="", help="as torch names it")
    options.add_argument("--threads", type=int, default=1)
    options.add_argument("--nice", type=int, default=0)
    options.add_argument("--memory-bytes", type=int, default=0, help="0: no ceiling")
    return options


def work(
    options: argparse.Namespace, make_table: Callable[[argparse.Namespace, Client], Table]
) -> int:
    """Take jobs until the daemon is gone or wants no more; the process's exit status."""
    _settle_in(options)
    try:
        # A session before the model: the daemon is to hear why it cannot be loaded.
        with libmem.connect(options.runtime_dir, name="memosd worker") as client:
            try:
                table = make_table(options, client)
            except Exception as error:  # noqa: BLE001 - whatever a model's files set off
                return _give_up(client, error)
            Loop(client, table, options.nice).run()
    except MemError as error:
        if error.errno in (Errno.ESHUTDOWN, Errno.ECONNRESET, Errno.ECONNREFUSED):
            return 0  # the daemon is going, or gone
        print(f"memosd.worker: {error}", file=sys.stderr)
        return int(error.errno)
    return 0


def _give_up(client: libmem.Client, error: Exception) -> int:
    errno = error.errno if isinstance(error, MemError) else Errno.EIO
    reason = error.message if isinstance(error, MemError) else f"{type(error).__name__}: {error}"
    client.call(FinishJob(0, errno=errno, message=reason))
    return int(errno)


def _settle_in(options: argparse.Namespace) -> None:
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    if os.getppid() != options.parent:  # it died before that
        sys.exit(0)
    oom_score = Path("/proc/self/oom_score_adj")
    if int(oom_score.read_text(encoding="ascii")) < _OOM_SCORE:  # to lower it takes a privilege
        oom_score.write_text(str(_OOM_SCORE), encoding="ascii")
    if options.memory_bytes:
        resource.setrlimit(resource.RLIMIT_DATA, (options.memory_bytes, options.memory_bytes))
    # Read when the frameworks are loaded, so set before.
    os.environ.update(dict.fromkeys(_THREADS, str(options.threads)))
    for name, value in _QUIET.items():
        os.environ.setdefault(name, value)
