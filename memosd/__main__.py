"""`memosd`: start the daemon.

memosd --user                     your own daemon: no root, no configuration
memosd --config /etc/memosd.toml  the system's daemon, as the service unit starts it
"""

import argparse
import gc
import signal
import sys
from importlib.metadata import version
from pathlib import Path

import msgspec

from libmem.abi.errors import MemError
from memosd import allocator, logs
from memosd.boot import boot
from memosd.config import Config, check, defaults_for_user, load

__all__ = ["main"]


def main() -> int:
    """Run until SIGTERM, SIGINT or SIGHUP.

    The exit status is the errno of what stopped it from booting.
    """
    options = _parser().parse_args()
    try:
        config = _config(options)
        if options.check:
            print("configuration ok")
            return 0
        logs.configure(config.log.format, config.log.level)
        # Callers must not wait while an I/O thread computes; the default would be 5 ms.
        sys.setswitchinterval(0.0002)
        allocator.return_large_buffers()
        daemon = boot(config)
    except MemError as error:
        print(f"memosd: {error.message}", file=sys.stderr)
        return int(error.errno)
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        signal.signal(number, lambda *_: daemon.server.stop())
    gc.freeze()  # what boot made stays: no collection has to look at it again
    daemon.run()
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="memosd", description=__doc__.splitlines()[0])
    parser.add_argument("--version", action="version", version=f"memosd {version('memosd')}")
    source = parser.add_mutually_exclusive_group()
    source.add_argument("--user", action="store_true", help="your own daemon, in your directories")
    source.add_argument("--config", type=Path, metavar="FILE", help="read FILE")
    parser.add_argument("--data-dir", type=Path, metavar="DIR", help="instead of the configured")
    parser.add_argument("--runtime-dir", type=Path, metavar="DIR", help="instead of the configured")
    parser.add_argument("--embedder", metavar="MODEL", help="instead of the configured; or: none")
    parser.add_argument(
        "--language-model", metavar="MODEL", help="for transitions, instead of the configured"
    )
    parser.add_argument("--check", action="store_true", help="check the configuration and exit")
    return parser


def _config(options: argparse.Namespace) -> Config:
    if options.config is not None:
        config = load(options.config)
    else:
        config = defaults_for_user() if options.user else Config()
    replace = msgspec.structs.replace
    if options.data_dir is not None:
        store = replace(config.store, data_dir=options.data_dir.absolute())
        config = replace(config, store=store)
    if options.runtime_dir is not None:
        listen = replace(config.listen, runtime_dir=options.runtime_dir.absolute())
        config = replace(config, listen=listen)
    if options.embedder is not None:
        config = replace(config, models=replace(config.models, embedder=options.embedder))
    if options.language_model is not None:
        transitions = replace(config.transitions, language_model=options.language_model)
        config = replace(config, transitions=transitions)
    check(config, "the command line")
    return config


if __name__ == "__main__":
    sys.exit(main())
