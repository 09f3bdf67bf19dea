"""`python -m memosd.worker`: what the daemon starts to have its work with models done."""

import argparse
import sys

from libmem import Client
from memosd.worker.embedding import embedding_table
from memosd.worker.loop import Table
from memosd.worker.process import parser, work


def _table(options: argparse.Namespace, _client: Client) -> Table:
    # A framework takes seconds to load, and may fail to: only here.
    from memosd.drivers.plaintext.bottom import Embedder

    return embedding_table(Embedder(options.embedder, options.threads))


if __name__ == "__main__":
    sys.exit(work(parser().parse_args(), _table))
