"""The rules that hold over the whole tree: links, sizes, head comments, imports, packages.

What a linter can say is in pyproject.toml; this file holds what none of them does.
"""

import ast
import os
import re
import subprocess
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest
from setuptools import find_packages

ROOT = Path(__file__).parents[1]
LINKED = ("kernel", "drivers", "tools")
SHIPPED = ("libmem", "memosd", *LINKED)
PYTHON = sorted(path for top in (*SHIPPED, "tests") for path in (ROOT / top).rglob("*.py"))
SHIPPED_PYTHON = [path for path in PYTHON if path.relative_to(ROOT).parts[0] in SHIPPED]

FILE_MAX_LINES = 400
FUNCTION_MAX_LINES = 40
FRAMEWORKS = {"torch", "transformers", "peft", "accelerate", "safetensors", "numpy"}
# Framework glue: imported on demand, by the program that already has the framework.
GLUE = {ROOT / "libmem/hf", ROOT / "libmem/device", ROOT / "libmem/peft"}
# In two halves, so that this file does not hold what it looks for.
UNFINISHED = re.compile(r"\b(TO" + r"DO|FIX" + r"ME|XX" + r"X)\b")
TEXT = {".py", ".md", ".toml", ".txt", ".service", ".sysusers", ".tmpfiles", ".cfg", ""}


def name(path: Path) -> str:
    """How a message names `path`."""
    return str(path.relative_to(ROOT))


def parse(path: Path) -> ast.Module:
    """The module's syntax tree."""
    return ast.parse(path.read_text(encoding="utf-8"), filename=name(path))


def imported(nodes: Iterator[ast.AST] | list[ast.stmt]) -> Iterator[str]:
    """The top-level package of everything that `nodes` import."""
    for node in nodes:
        if isinstance(node, ast.Import):
            yield from (alias.name.partition(".")[0] for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            yield node.module.partition(".")[0]


def length(function: ast.FunctionDef | ast.AsyncFunctionDef) -> int:
    """The function's lines without its docstring."""
    lines = (function.end_lineno or function.lineno) - function.lineno + 1
    if ast.get_docstring(function, clean=False) is not None:
        head = function.body[0]
        lines -= (head.end_lineno or head.lineno) - head.lineno + 1
    return lines


def text_files() -> Iterator[Path]:
    """Every file that people wrote, links and what tools leave behind apart."""
    for folder, folders, files in os.walk(ROOT):
        folders[:] = [
            entry
            for entry in folders
            if entry not in {"build", "dist", "__pycache__"}
            and not (entry.startswith(".") and entry != ".ci")
            and not entry.endswith(".egg-info")
        ]
        yield from (Path(folder, file) for file in files if Path(file).suffix in TEXT)


def test_the_tree_was_found() -> None:
    assert {path.relative_to(ROOT).parts[0] for path in PYTHON} == {*SHIPPED, "tests"}


@pytest.mark.parametrize("top", LINKED)
def test_links_are_relative(top: str) -> None:
    link = ROOT / "memosd" / top
    assert os.readlink(link) == f"../{top}"
    assert (link / "__init__.py").samefile(ROOT / top / "__init__.py")


def test_links_are_tracked_as_links() -> None:
    if not (ROOT / ".git").exists():
        pytest.skip("not a checkout")
    links = [f"memosd/{top}" for top in LINKED]
    listing = subprocess.run(
        ["git", "ls-files", "--stage", "--", *links],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    modes = {row.split("\t")[1]: row.split()[0] for row in listing.splitlines()}
    assert modes == dict.fromkeys(links, "120000")


def test_every_module_says_what_it_owns() -> None:
    silent = [
        name(path)
        for path in PYTHON
        if path.read_text(encoding="utf-8").strip() and not ast.get_docstring(parse(path))
    ]
    assert silent == []


def test_only_init_files_are_empty() -> None:
    empty = [path for path in PYTHON if not path.read_text(encoding="utf-8").strip()]
    assert [name(path) for path in empty if path.name != "__init__.py"] == []


def test_no_file_is_too_long() -> None:
    lines = {name(path): len(path.read_text(encoding="utf-8").splitlines()) for path in PYTHON}
    assert {file: count for file, count in lines.items() if count > FILE_MAX_LINES} == {}


def test_no_function_is_too_long() -> None:
    long = {
        f"{name(path)}:{node.lineno} {node.name}": length(node)
        for path in SHIPPED_PYTHON
        for node in ast.walk(parse(path))
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
        and length(node) > FUNCTION_MAX_LINES
    }
    assert long == {}


def test_generic_names_are_never_imported_bare() -> None:
    bare = {name(path): set(imported(ast.walk(parse(path)))) & set(LINKED) for path in PYTHON}
    assert {file: names for file, names in bare.items() if names} == {}


def test_importing_libmem_needs_no_framework() -> None:
    core = [path for path in SHIPPED_PYTHON if path.is_relative_to(ROOT / "libmem")]
    heavy = {
        name(path): set(imported(parse(path).body)) & FRAMEWORKS
        for path in core
        if GLUE.isdisjoint(path.parents)
    }
    assert {file: names for file, names in heavy.items() if names} == {}


def test_every_folder_of_modules_is_installed() -> None:
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    include = settings["tool"]["setuptools"]["packages"]["find"]["include"]
    folders = {path.parent.relative_to(ROOT) for path in SHIPPED_PYTHON}
    linked = {Path("memosd", folder) if folder.parts[0] in LINKED else folder for folder in folders}
    assert set(find_packages(str(ROOT), include=include)) == {
        ".".join(folder.parts) for folder in linked
    }


def test_every_shipped_file_is_installed() -> None:
    files = [path for top in SHIPPED for path in (ROOT / top).rglob("*") if path.is_file()]
    strange = [
        name(path)
        for path in files
        if path.suffix != ".py" and path.name != "py.typed" and "__pycache__" not in path.parts
    ]
    assert strange == []  # a new kind of file needs a row in package-data


def test_nothing_is_left_unfinished() -> None:
    found = {
        name(path): match[0]
        for path in text_files()
        if (match := UNFINISHED.search(path.read_text(encoding="utf-8")))
    }
    assert found == {}
