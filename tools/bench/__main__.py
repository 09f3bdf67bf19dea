"""`memos-bench`: run one benchmark, or all, and print what was found.

Exit status: 0 when everything was measured, bars missed or not; 1 when something failed. Of `all`
the others are measured and printed nevertheless; what failed is told at the end.
Nothing is loaded before it is needed: the benchmarks' own processes import this file again.
"""

import argparse
import dataclasses
import importlib
import signal
import sys
from pathlib import Path
from typing import Any, Final

from libmem.abi.errors import MemError

__all__ = ["main"]

# The one list of benchmarks: name, module, what it answers.
_BENCHMARKS: Final = {
    "boot": ("memosd.tools.bench.boot", "import libmem, and memosd to READY"),
    "rpc": ("memosd.tools.bench.rpc", "one syscall against a bare echo"),
    "put": ("memosd.tools.bench.put", "durable writes against LMDB alone"),
    "mmap": ("memosd.tools.bench.mapping", "large payloads against pickle, memfd and read"),
    "scale": ("memosd.tools.bench.scale", "a million small cubes"),
    "kv": ("memosd.tools.bench.kv", "a mapped prefix against prefill and an in-process cache"),
    "kv-int8": ("memosd.tools.bench.kv_int8", "what a prefix loses and saves on disk as int8"),
    "share": ("memosd.tools.bench.share", "memory of many processes over one prefix"),
    "prefix": ("memosd.tools.bench.prefix", "the longest prefix among 10,000 KV cubes"),
    "cost": ("memosd.tools.bench.cost", "load or compute by cost against always either"),
    "transmute": ("memosd.tools.bench.transmute", "text to KV by the daemon against a prefill"),
    "lora-learn": ("memosd.tools.bench.lora_learn", "facts trained into an adapter, and asked"),
    "lora-page": ("memosd.tools.bench.lora_page", "adapters swapped in against PEFT's loading"),
    "shootdown": ("memosd.tools.bench.shootdown", "a source edited under a thousand derived"),
    "embed": ("memosd.tools.bench.embed", "vectors of texts against sentence-transformers"),
    "recall": ("memosd.tools.bench.recall", "what a search finds of what questions need"),
    "search-scale": ("memosd.tools.bench.search_scale", "a search among 200,000 memories"),
    "fairness": ("memosd.tools.bench.fairness", "what min keeps while another namespace floods"),
    "reclaim": ("memosd.tools.bench.reclaim", "faults and budgets at four times the RAM"),
    "pressure": ("memosd.tools.bench.pressure", "memory given back when the machine is short"),
    "backlog": ("memosd.tools.bench.backlog", "a write while thousands wait for their vectors"),
    "policy": ("memosd.tools.bench.policy", "what reclaim policies hit of a trace, and how fast"),
}


def main(argv: list[str] | None = None) -> int:
    """The command line; returns the exit status."""
    options = _parser().parse_args(argv)
    # As Ctrl-C: daemons are stopped and stores removed.
    before = signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        options.dir = options.dir.resolve(strict=True)
        found, failed = _run(_names(options), options)
    except KeyboardInterrupt:
        return 130
    except OSError as error:
        print(f"memos-bench: {error}", file=sys.stderr)
        return 1
    finally:
        signal.signal(signal.SIGTERM, before)
    for name, why in failed.items():
        print(f"memos-bench: {name}: {why}", file=sys.stderr)
    if options.json:
        from memosd.tools.bench.report import dump

        if options.name == "all":
            print(dump({"benchmark": "all", "failed": failed, **found}))
        elif not failed:
            print(dump(*found.values()))
    return 1 if failed else 0


def _names(options: argparse.Namespace) -> list[str]:
    """The benchmarks that are asked for."""
    if options.name == "all":
        return [name for name in _BENCHMARKS if name != "recall" or options.data is not None]
    if options.name == "kv" and options.quantise is not None:
        return [f"kv-{options.quantise}"]
    return [options.name]


def _parser() -> argparse.ArgumentParser:
    rows = "\n".join(f"  {name:12} {what}" for name, (_, what) in _BENCHMARKS.items())
    rows += "\n  all          each of them, in this order; recall where there is --data"
    parser = argparse.ArgumentParser(
        prog="memos-bench",
        description="Measure memosd against the peer or physical limit of the same run.",
        epilog=f"benchmarks:\n{rows}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("name", choices=[*_BENCHMARKS, "all"], metavar="NAME")
    parser.add_argument("--json", action="store_true", help="one JSON object as the last line")
    parser.add_argument("--quick", action="store_true", help="fewer and shorter rounds")
    parser.add_argument("--cubes", type=_count, metavar="N", help="scale: cubes in the large store")
    parser.add_argument(
        "--quantise",
        choices=["int8"],
        help="kv: what it costs to lie on disk in that form; the same as kv-int8",
    )
    _add_inputs(parser)
    return parser


def _add_inputs(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--data",
        type=Path,
        metavar="FILE",
        help="recall: conversations with questions, in the JSON of LoCoMo; it needs them",
    )
    parser.add_argument(
        "--trace",
        metavar="FILE",
        help="policy: recorded accesses, or synthetic:NAME; without it all synthetic ones",
    )
    parser.add_argument(
        "--capacity",
        type=_shares,
        metavar="SHARES",
        help="policy: of the trace's distinct blocks, such as 0.05,0.10,0.25",
    )
    parser.add_argument(
        "--dir",
        type=Path,
        default=Path("/var/tmp"),
        help="where the stores are made and removed again; a real disk (default: %(default)s)",
    )


def _count(text: str) -> int:
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError(f"must be at least 1, not {number}")
    return number


def _shares(text: str) -> tuple[str, ...]:
    shares = tuple(text.split(","))
    if not all(0 < float(share) <= 1 for share in shares):
        raise argparse.ArgumentTypeError(f"must be above 0 and at most 1, not {text}")
    return shares


def _run(
    names: list[str], options: argparse.Namespace
) -> tuple[dict[str, dict[str, Any]], dict[str, str]]:
    """What each found, and why the others found nothing."""
    found: dict[str, dict[str, Any]] = {}
    failed: dict[str, str] = {}
    for name in names:
        try:
            found[name] = _measure(name, options)
        except (MemError, OSError, ImportError) as error:  # a model or a framework is not there
            failed[name] = str(error)
    return found, failed


def _measure(name: str, options: argparse.Namespace) -> dict[str, Any]:
    """Run one, print its table. Errors: whatever the benchmark raises, of any kind."""
    from memosd.tools.bench.report import Machine, print_table, to_json

    module = importlib.import_module(_BENCHMARKS[name][0])
    plan = module.QUICK if options.quick else module.FULL
    if name == "scale" and options.cubes is not None:
        plan = dataclasses.replace(plan, cubes=options.cubes)
    if name == "recall":
        plan = dataclasses.replace(plan, data=options.data)
    if name == "policy":
        plan = dataclasses.replace(
            plan,
            trace=options.trace or plan.trace,
            capacities=options.capacity or plan.capacities,
        )
    machine = Machine.here(options.dir)
    print(f"memos-bench: {name} ...", file=sys.stderr, flush=True)
    report = module.measure(plan, options.dir)
    print_table(report, machine, sys.stdout)
    return to_json(report, machine)


if __name__ == "__main__":
    sys.exit(main())
