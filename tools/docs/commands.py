"""The man pages of the programs: memosd(8), memctl(1), memos-bench(1).

Options and commands come out of each program's own parser; only what no parser knows (files,
environment, signals) is written here. Called by `__main__` alone.
"""

import argparse
import re
from collections.abc import Iterator
from typing import Any, Final

import typer

from libmem.abi.errors import Errno
from memosd import __main__ as memosd
from memosd.tools.bench import __main__ as bench
from memosd.tools.docs.roff import Page
from memosd.tools.memctl import __main__ as memctl

__all__ = ["render_bench", "render_memctl", "render_memosd"]

_COMMON_PANEL: Final = "Common options"
_NAME: Final = "NAME"
"""The argument that nearly every command takes; the page's head says what it is."""
_TYPES: Final = {
    "<str>": "TEXT",
    "<list[str]>": "TEXT",
    "<int range>": "N",
    "<float range>": "SECONDS",
}
_CHOICES: Final = re.compile(r"<(?:list\[)?([\w|]+\|[\w|]+)\]?>")

_MEMOSD: Final = """\
memosd keeps memories for programs on this machine: it owns one page table of named, versioned \
cubes, keeps their payloads in RAM and on disk, and hands them to processes by mapping. Programs \
talk to it through libmem, people through memctl(1).

It stays in the foreground and writes its log to standard error. Under systemd it says when it is \
ready, what it is doing and that it is alive (sd_notify(3)).

Who a caller is, the operating system says: nobody logs in. Root and the user that memosd runs as \
are its administrators."""

_MEMCTL_EXIT: Final = """\
0, or the number of the error that ended the command; with --json the error is an object on \
standard error. 64: the command line made no sense. 130: interrupted. 141: whoever read the \
output went away."""

_RUNTIME: Final = (
    ("MEMOSD_RUNTIME_DIR", "Where the daemon's sockets are. Clients look here first."),
    (
        "XDG_RUNTIME_DIR",
        "Below it lies the directory of the user's own daemon, memosd; /tmp/memosd-UID where it "
        "is not set. Clients look there when MEMOSD_RUNTIME_DIR is not set, and then in "
        "/run/memosd.",
    ),
)


def render_memosd(version: str) -> str:
    """memosd(8)."""
    page = Page("memosd", 8, version)
    parser = memosd._parser()
    _open(page, "memosd", "memory kernel for language-model programs")
    page.synopsis("memosd", "[--user | --config FILE] [--data-dir DIR] [--runtime-dir DIR]")
    page.synopsis("memosd", "[--user | --config FILE] --check")
    page.section("Description")
    page.text(_MEMOSD)
    page.section("Options")
    _options(page, parser)
    page.text("Without --user and --config it runs as the system's daemon with default settings.")
    page.section("Signals")
    page.item(
        ["SIGTERM", "SIGINT", "SIGHUP"], "Answer what is in flight, write back, exit with status 0."
    )
    page.section("Exit status")
    page.text("0 after a signal or `memctl shutdown`; otherwise the number of the error that kept "
              "it from starting, such as 16 (EBUSY) when another memosd serves the same data, 93 "
              "(EPROTONOSUPPORT) for data of another format, 202 (ECORRUPT) for a damaged "
              "table.")  # fmt: skip
    page.section("Files")
    page.item(["/etc/memosd/memosd.toml"], "Configuration of the system's daemon.")
    page.item(["/var/lib/memosd", "~/.local/share/memosd"], "Data: the system's, a user's. On a "
              "local disk, never on a network file system.")  # fmt: skip
    page.item(["/run/memosd", "$XDG_RUNTIME_DIR/memosd"], "Sockets: control.sock and fd.sock.")
    page.section("Environment")
    for name, text in _RUNTIME[1:]:
        page.item([name], text.partition(" Clients")[0])
    page.item(["XDG_DATA_HOME"], "Below it lies the data of --user; ~/.local/share if not set.")
    page.section("See also")
    page.text("memosd.toml(5), memctl(1), memos-bench(1)")
    return page.render()


def render_bench(version: str) -> str:
    """memos-bench(1)."""
    page = Page("memos-bench", 1, version)
    parser = bench._parser()
    _open(page, "memos-bench", "measure memosd against a peer or physical limit")
    page.synopsis(
        "memos-bench", "NAME [--json] [--quick] [--cubes N] [--quantise int8] [--dir DIR]"
    )
    page.section("Description")
    page.text(f"{parser.description} Each benchmark starts a daemon of its own, in a directory of "
              "its own, and removes both. NAME is one of these:")  # fmt: skip
    for line in str(parser.epilog).splitlines()[1:]:
        name, what = line.split(maxsplit=1)
        page.item([name], what)
    page.section("Options")
    _options(page, parser)
    page.section("Exit status")
    page.text("0 when everything was measured, bars missed or not; 1 when something failed.")
    page.section("See also")
    page.text("memosd(8)")
    return page.render()


def render_memctl(version: str) -> str:
    """memctl(1)."""
    page = Page("memctl", 1, version)
    group: Any = typer.main.get_command(memctl.app)
    context = group.context_class(group, info_name="memctl")
    _open(page, "memctl", "see and change the memories that a memosd keeps")
    page.synopsis("memctl", "[OPTIONS] COMMAND [ARGUMENTS]")
    page.section("Description")
    page.text(_reflowed(group.help))
    page.section("Options")
    for parameter in group.get_params(context):
        _parameter(page, context, parameter)
    page.section("Commands")
    page.text("The options --runtime-dir, --timeout and --json may also follow the command.")
    for name, command in group.commands.items():
        _command(page, context, name, command)
    page.section("Exit status")
    page.text(_MEMCTL_EXIT)
    for errno in Errno:
        page.item([f"{int(errno)}  {errno.name}"], f"{errno.meaning}.")
    page.section("Environment")
    for name, text in _RUNTIME:
        page.item([name], text)
    page.section("See also")
    page.text("memosd(8), memosd.toml(5), memos-bench(1); `memctl help` for the syscalls")
    return page.render()


def _open(page: Page, name: str, summary: str) -> None:
    page.section("Name")
    page.text(f"{name} - {summary}")
    page.section("Synopsis")


def _options(page: Page, parser: argparse.ArgumentParser) -> None:
    """The options of an argparse parser, without --help."""
    for action in parser._actions:
        if action.option_strings and action.dest != "help":
            value = f" {action.metavar or action.dest.upper()}" if action.nargs is None else ""
            page.item(
                [f"{option}{value}" for option in action.option_strings],
                f"{(action.help or '') % {'default': action.default}}.",
            )


def _command(page: Page, parent: Any, name: str, command: Any) -> None:
    context = command.context_class(command, info_name=name, parent=parent)
    own = [
        parameter
        for parameter in command.get_params(context)
        if parameter.rich_help_panel != _COMMON_PANEL and parameter.name != "help"
    ]
    usage = [_usage(parameter) for parameter in own if parameter.param_type_name == "argument"]
    if len(usage) < len(own):
        usage.insert(0, "[OPTIONS]")
    page.subsection(" ".join(["memctl", name, *usage]))
    page.text(_reflowed(command.help))
    for parameter in own:
        _parameter(page, context, parameter)


def _usage(argument: Any) -> str:
    return str(argument.metavar or argument.name.upper())


def _parameter(page: Page, context: Any, parameter: Any) -> None:
    """One option or argument, if there is more to say of it than its place."""
    names, text = parameter.get_help_record(context)
    text = text.replace("[required]", "").strip()
    if parameter.param_type_name == "argument":
        usage = _usage(parameter)
        if not text or usage == _NAME:
            return
        names = " ".join([usage, *_CHOICES.findall(names)])
    for shown, meant in _TYPES.items():
        names = names.replace(shown, meant)
    page.item([_CHOICES.sub(r"\1", names)], text)


def _reflowed(text: str) -> str:
    """A docstring's paragraphs, each on one line."""
    return "\n\n".join(" ".join(part.split()) for part in _paragraphs(text))


def _paragraphs(text: str) -> Iterator[str]:
    yield from (part for part in re.split(r"\n\s*\n", text) if part.strip())
