"""What a result depends on: its settings, its inputs, and the code that decides its bytes.

A key is three hashes, so that a stale result can say which of them has changed. The code of a stage
is its module and all that this imports, directly or not, without comments and docstrings, together
with the data files beside those modules. Nothing is listed by hand.
"""

from __future__ import annotations

import ast
import hashlib
from collections.abc import Iterable, Iterator, Mapping
from functools import cache
from pathlib import Path
from typing import Any

from merit.io.artifacts import value_hash

PACKAGE = Path(__file__).parents[1]
DOCUMENTED = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)
# Settings decide through their values, which are in the key; the others word messages and find
# files.
NOT_CODE = (
    "merit.config.",
    "merit.errors",
    "merit.io.artifacts",
    "merit.io.disk",
    "merit.io.locks",
    "merit.io.machine",
    "merit.io.progress",
)


def make_key(settings: Any, inputs: Mapping[str, Any], code: str) -> dict[str, str]:
    """{"settings", "inputs", "code"}: what decides an item's bytes, each as a hash."""
    return {"settings": value_hash(settings), "inputs": value_hash(inputs), "code": code}


def code_hash(modules: Iterable[str]) -> str:
    """SHA-256 over the code that these modules lead to."""
    files = {file for module in modules for file in code_files(module)}
    return value_hash(sorted((path.as_posix(), fingerprint(PACKAGE / path)) for path in files))


@cache
def code_files(module: str) -> frozenset[Path]:
    """The files, relative to the package, that decide what a module computes."""
    todo, modules = [module, "merit.pins"], set[str]()
    while todo:
        name = todo.pop()
        file = None if name in modules or f"{name}.".startswith(NOT_CODE) else module_file(name)
        if file:
            modules.add(name)
            todo += imported(file)
    sources = {file for name in modules if (file := module_file(name))}
    data = {file for folder in {source.parent for source in sources} for file in data_files(folder)}
    return frozenset(path.relative_to(PACKAGE) for path in sources | data)


@cache
def module_file(name: str) -> Path | None:
    """The file of a module of this package; None for any other name."""
    first, *rest = name.split(".")
    if first != PACKAGE.name:
        return None
    path = PACKAGE.joinpath(*rest)
    for file in (path.with_suffix(".py"), path / "__init__.py"):
        if rest and file.is_file():
            return file
    return None


@cache
def imported(file: Path) -> tuple[str, ...]:
    """What a file imports, within functions too: modules, and names that may be modules.

    A registry that finds the modules of its own folder imports them all.
    """
    text, found = file.read_bytes(), []
    if b"iter_modules(__path__)" in text:
        package = ".".join(file.parent.relative_to(PACKAGE.parent).parts)
        found = [f"{package}.{other.stem}" for other in sorted(file.parent.glob("*.py"))]
    return (*found, *_imports(ast.parse(text)))


def _imports(tree: ast.AST) -> Iterator[str]:
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            yield node.module
            yield from (f"{node.module}.{alias.name}" for alias in node.names)
        elif isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING":
            continue  # names for the type checker
        else:
            yield from _imports(node)


@cache
def data_files(folder: Path) -> tuple[Path, ...]:
    """What is not Python in a folder of modules, and in folders below it without modules."""
    found: list[Path] = []
    for path in sorted(folder.iterdir()):
        if path.is_dir() and path.name != "__pycache__" and not any(path.glob("**/*.py")):
            found += [file for file in sorted(path.rglob("*")) if file.is_file()]
        elif path.is_file() and path.suffix not in (".py", ".pyc") and path.name[0] != ".":
            found.append(path)
    return tuple(found)


@cache
def fingerprint(file: Path) -> str:
    """SHA-256 of a file; of Python without comments, docstrings and layout."""
    content = file.read_bytes()
    if file.suffix == ".py":
        tree = ast.parse(content)
        for node in ast.walk(tree):
            if isinstance(node, DOCUMENTED) and ast.get_docstring(node) is not None:
                node.body[:1] = [] if len(node.body) > 1 else [ast.Pass()]
        content = ast.dump(tree).encode()
    return hashlib.sha256(content).hexdigest()
