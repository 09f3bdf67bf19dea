"""What the ABI's own source says of its structs, enums and limits: names, types, defaults, prose.

Pure functions, used by the pages that are generated and by `memctl help`. Prose is the string
literal that follows a field or a constant, which Python drops and a reader of the source sees; so
the manual needs no second text that could differ from the first.
"""

import ast
import inspect
import types
from collections.abc import Iterable
from enum import StrEnum
from functools import cache
from importlib import import_module
from itertools import pairwise
from types import ModuleType
from typing import Any, Final, NamedTuple, Union, get_args, get_origin

import msgspec

__all__ = ["Constant", "Field", "constants_of", "doc_of", "fields_of", "named_types", "type_name"]

_OCTAL: Final = frozenset({"mode"})
"""Fields that people read in octal."""


class Field(NamedTuple):
    """One field of a struct as people read it; `default` is empty for a required one."""

    name: str
    type: str
    default: str
    doc: str


class Constant(NamedTuple):
    """One named value of a module."""

    name: str
    value: Any
    doc: str


def fields_of(struct: type[msgspec.Struct], *, is_expanded: bool = False) -> list[Field]:
    """The fields in their order; `is_expanded`: enums by their values."""
    prose = _prose(struct.__module__).get(struct.__name__, {})
    return [
        Field(
            field.encode_name,
            type_name(field.type, is_expanded=is_expanded),
            _default(field),
            prose.get(field.name, ""),
        )
        for field in msgspec.structs.fields(struct)
    ]


def constants_of(module: ModuleType) -> list[Constant]:
    """The annotated constants of a module in their order."""
    tree = ast.parse(inspect.getsource(module))
    prose = _literals(tree)
    names = [
        node.target.id
        for node in tree.body
        if isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name)
    ]
    return [Constant(name, getattr(module, name), prose.get(name, "")) for name in names]


def doc_of(kind: type) -> str:
    """The type's own docstring on one line, not that of a base."""
    return " ".join(inspect.cleandoc(vars(kind).get("__doc__") or "").split())


def named_types(structs: Iterable[type[msgspec.Struct]]) -> list[type]:
    """The structs and enums that the fields of `structs` hold, at any depth, in order met."""
    found: dict[type, None] = {}
    known = set(structs)

    def visit(annotation: Any) -> None:
        for inner in get_args(annotation):
            visit(inner)
        if not isinstance(annotation, type) or annotation in found or annotation in known:
            return
        if issubclass(annotation, StrEnum):
            found[annotation] = None
        elif issubclass(annotation, msgspec.Struct):
            found[annotation] = None
            for field in msgspec.structs.fields(annotation):
                visit(field.type)

    for struct in structs:
        for field in msgspec.structs.fields(struct):
            visit(field.type)
    return list(found)


def type_name(annotation: Any, *, is_expanded: bool = False) -> str:
    """`int | None`, `tuple[str, ...]`, `Quota`; `is_expanded`: `ram|disk` for an enum."""
    if annotation is types.NoneType:
        return "None"
    if annotation is Ellipsis:
        return "..."
    if is_expanded and isinstance(annotation, type) and issubclass(annotation, StrEnum):
        return "|".join(annotation)
    origin = get_origin(annotation)
    inner = [type_name(each, is_expanded=is_expanded) for each in get_args(annotation)]
    if origin in {types.UnionType, Union}:
        return " | ".join(inner)
    if origin is not None:
        return f"{origin.__name__}[{', '.join(inner)}]"
    return getattr(annotation, "__name__", str(annotation))


def _default(field: msgspec.structs.FieldInfo) -> str:
    if field.default_factory is not msgspec.NODEFAULT:
        value = field.default_factory()
    elif field.default is not msgspec.NODEFAULT:
        value = field.default
    else:
        return ""
    if isinstance(value, msgspec.Struct):
        return f"{type(value).__name__}()"
    if field.name in _OCTAL and isinstance(value, int):
        return f"{value:#o}"
    return str(value) if isinstance(value, StrEnum) else repr(value)


@cache
def _prose(module: str) -> dict[str, dict[str, str]]:
    """Class -> field -> what is said of it. By the module: to find one class is to parse all."""
    tree = ast.parse(inspect.getsource(import_module(module)))
    return {node.name: _literals(node) for node in tree.body if isinstance(node, ast.ClassDef)}


def _literals(tree: ast.AST) -> dict[str, str]:
    """The string literal behind each assignment in a body, on one line."""
    body = getattr(tree, "body", [])
    found = {}
    for node, behind in pairwise(body):
        if (
            isinstance(node, ast.AnnAssign)
            and isinstance(node.target, ast.Name)
            and isinstance(behind, ast.Expr)
            and isinstance(behind.value, ast.Constant)
            and isinstance(behind.value.value, str)
        ):
            found[node.target.id] = " ".join(behind.value.value.split())
    return found
