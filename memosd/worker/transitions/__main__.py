"""`python -m memosd.worker.transitions`: what the daemon starts to have memories change type."""

import argparse
import os
import sys
import warnings
from contextlib import suppress

from libmem import Client
from memosd.worker.loop import Table
from memosd.worker.process import parser, work


def _table(options: argparse.Namespace, _client: Client) -> Table:
    with suppress(OSError):  # a sandbox may forbid it; the work is done all the same
        os.nice(options.nice)
    # PEFT asks transformers for an old name.
    warnings.filterwarnings("ignore", "`is_gradient_checkpointing`", FutureWarning)
    # A framework takes seconds to load, and may fail to: only here.
    from memosd.worker.transitions.models import Models
    from memosd.worker.transitions.scratch import Scratch
    from memosd.worker.transitions.transmuting import transition_table

    models = Models(options.model, options.dtype, options.threads)
    return transition_table(models, options.runtime_dir, Scratch(options.scratch_dir))


if __name__ == "__main__":
    sys.exit(work(parser().parse_args(), _table))
