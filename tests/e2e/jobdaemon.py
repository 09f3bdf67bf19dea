"""A daemon whose kernel submits what a test writes to a pipe: `python -m tests.e2e.jobdaemon`.

Takes memosd's own arguments. The pipe's path is in $JOBS_PIPE: each line is a class, a tab, and
texts between tabs. A line for each job that is done goes to the file beside it, `outcomes`.
"""

import os
import sys
from functools import partial
from pathlib import Path

from libmem.abi.errors import MemError
from libmem.abi.jobs import EmbedRequest, JobClass
from memosd import __main__ as program
from memosd import boot as boot_order
from memosd.boot import Daemon
from memosd.config import Config
from memosd.kernel.jobs import Job
from memosd.server import Server

_PIPE = Path(os.environ["JOBS_PIPE"])


def _boot(config: Config) -> Daemon:
    daemon = boot_order.boot(config)
    # For writing as well: it has no end as long as somebody could write.
    pipe = os.open(_PIPE, os.O_RDWR | os.O_NONBLOCK | os.O_CLOEXEC)
    daemon.server.watch(pipe, partial(_submit, daemon.server, pipe))
    return daemon


def _submit(server: Server, pipe: int) -> None:
    assert server.kernel is not None
    for line in os.read(pipe, 65536).decode().splitlines():
        name, job_class, *texts = line.split("\t")
        try:
            job = server.kernel.jobs.submit(JobClass(job_class), 1, EmbedRequest(tuple(texts)))
        except MemError as error:
            _tell(f"{name}\t{error}")
            continue
        job.done.on_done(partial(_tell_outcome, name, job))


def _tell_outcome(name: str, job: Job) -> None:
    try:
        outcome = job.done.result().decode()
    except MemError as error:
        outcome = str(error)
    _tell(f"{name}\t{outcome}")


def _tell(line: str) -> None:
    with _PIPE.with_name("outcomes").open("a") as outcomes:
        outcomes.write(line + "\n")


def _stand_in(config: Config) -> list[str]:
    return ["tests.e2e.standin" if word == "memosd.worker" else word for word in _real(config)]


_real = boot_order._worker_command

if __name__ == "__main__":
    vars(boot_order)["_worker_command"] = _stand_in
    vars(program)["boot"] = _boot
    sys.exit(program.main())
