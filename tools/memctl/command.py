"""What every memctl command shares: its session with the daemon and the options all of them have.

Owns the way from a command line to a command's body. `@command(app, "name")` turns a body
`(session, arguments...)` into a command that also takes --json, --runtime-dir and --timeout; a
parameter of the body whose type is a dataclass becomes one option per field, so that no function
needs ten parameters. Invariant: the session is closed and standard output flushed when a command
returns or raises.
"""

import functools
import inspect
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, fields, is_dataclass
from functools import cached_property
from pathlib import Path
from typing import Annotated, Any, Final, Protocol, TypeVar, cast

import typer

import libmem
from libmem.abi.calls import Call
from libmem.abi.structs import Value
from libmem.connection import TIMEOUT_MAX_S
from memosd.tools.memctl.files import silence_stdout, translate
from memosd.tools.memctl.output import Output

__all__ = ["BROKEN_PIPE_STATUS", "Connect", "Session", "Settings", "command"]

R = TypeVar("R", bound=Value)
Body = TypeVar("Body", bound=Callable[..., None])

BROKEN_PIPE_STATUS: Final = 141
"""What a shell reports for a program that SIGPIPE ended: `memctl cat ... | head`."""
_TIMEOUT_S: Final = 10.0
_SLOW_TIMEOUT_S: Final = 600.0
"""For calls that move payloads: a disk may need that long for a large one."""
_PANEL: Final = "Common options"


class Connect(Protocol):
    """The shape of libmem.connect."""

    def __call__(
        self, runtime_dir: Path | None = None, *, timeout_s: float = ..., name: str | None = None
    ) -> libmem.Client: ...


@dataclass
class Settings:
    """What was asked for before and after the command's name; the latter wins."""

    connect: Connect = libmem.connect
    runtime_dir: Path | None = None
    timeout_s: float | None = None
    is_json: bool = False

    def override(self, runtime_dir: Path | None, timeout_s: float | None, is_json: bool) -> None:
        self.runtime_dir = runtime_dir or self.runtime_dir
        self.timeout_s = timeout_s or self.timeout_s
        self.is_json = is_json or self.is_json


class Session:
    """One command's run: where it prints, and its connection, made at the first call."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self.out = Output(is_json=settings.is_json)

    @cached_property
    def client(self) -> libmem.Client:
        """Errors: ECONNREFUSED when no daemon answers."""
        return self._connected(_TIMEOUT_S)

    @cached_property
    def bulk_client(self) -> libmem.Client:
        """A second session, for what moves many bytes: more patient than the first."""
        return self._connected(_SLOW_TIMEOUT_S)

    def call(self, request: Call[R], *, is_slow: bool = False) -> R:
        """One syscall; `is_slow` when it may move a large payload."""
        timeout_s = self._settings.timeout_s or (_SLOW_TIMEOUT_S if is_slow else _TIMEOUT_S)
        return self.client.call(request, timeout_s=timeout_s)

    def close(self) -> None:
        for made in ("client", "bulk_client"):
            if made in self.__dict__:
                getattr(self, made).close()

    def _connected(self, timeout_s: float) -> libmem.Client:
        settings = self._settings
        return settings.connect(
            settings.runtime_dir, timeout_s=settings.timeout_s or timeout_s, name="memctl"
        )

    def note(self, text: str) -> None:
        """A remark for people that is no result."""
        if not self.out.is_json:
            print(text, file=sys.stderr)


RuntimeDir = Annotated[
    Path | None,
    typer.Option(
        "--runtime-dir",
        help="Directory of the daemon's sockets.",
        metavar="DIR",
        rich_help_panel=_PANEL,
        show_default=False,
    ),
]
Timeout = Annotated[
    float | None,
    typer.Option(
        "--timeout",
        help="Seconds to wait for each reply (10; 600 where payloads move).",
        min=0.001,
        max=TIMEOUT_MAX_S,
        metavar="SECONDS",
        rich_help_panel=_PANEL,
        show_default=False,
    ),
]
Json = Annotated[
    bool,
    typer.Option("--json", help="Print JSON, one object per line.", rich_help_panel=_PANEL),
]
_COMMON: Final = {
    "runtime_dir": (RuntimeDir, None),
    "timeout": (Timeout, None),
    "json": (Json, False),
}


def command(app: typer.Typer, name: str) -> Callable[[Body], Body]:
    """Make a command of the decorated body; its docstring is the help."""

    def register(body: Body) -> Body:
        parameters = list(inspect.signature(body).parameters.values())[1:]
        groups = {
            item.name: cast(Callable[..., Any], item.annotation)
            for item in parameters
            if is_dataclass(item.annotation)
        }

        @functools.wraps(body)
        def run(context: typer.Context, **arguments: Any) -> None:
            settings: Settings = context.obj
            settings.override(*(arguments.pop(option) for option in _COMMON))
            for parameter, group in groups.items():
                names = inspect.signature(group).parameters
                arguments[parameter] = group(**{name: arguments.pop(name) for name in names})
            with _session(settings) as session:
                body(session, **arguments)

        # typer reads the command line's shape off the signature.
        run.__signature__ = _signature(parameters)  # type: ignore[attr-defined]
        run.__annotations__ = {
            item.name: item.annotation for item in _signature(parameters).parameters.values()
        }
        app.command(name, rich_help_panel=app.rich_help_panel)(run)
        return body

    return register


def _signature(parameters: list[inspect.Parameter]) -> inspect.Signature:
    """The command's own parameters, option groups taken apart, then the common ones."""
    keyword = inspect.Parameter.KEYWORD_ONLY
    context = inspect.Parameter(
        "context", inspect.Parameter.POSITIONAL_OR_KEYWORD, annotation=typer.Context
    )
    shown = [context]
    for item in parameters:
        if is_dataclass(item.annotation):
            shown += [
                inspect.Parameter(part.name, keyword, default=part.default, annotation=part.type)
                for part in fields(item.annotation)
            ]
        else:
            shown.append(item.replace(kind=keyword))
    shown += [
        inspect.Parameter(name, keyword, default=default, annotation=annotation)
        for name, (annotation, default) in _COMMON.items()
    ]
    return inspect.Signature(shown)


@contextmanager
def _session(settings: Settings) -> Iterator[Session]:
    session = Session(settings)
    try:
        yield session
        sys.stdout.flush()
    except BrokenPipeError:
        silence_stdout()  # nobody reads on
        raise typer.Exit(BROKEN_PIPE_STATUS) from None
    except OSError as error:  # the user's files are translated where they are read
        silence_stdout()
        raise translate(error, "standard output") from None
    finally:
        session.close()
