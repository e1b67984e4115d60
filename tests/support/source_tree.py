"""The repository's Python files as syntax trees, and where their names come from."""

import ast
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from tools.import_graph import PRODUCT, module_files, module_name

ROOT = Path(__file__).resolve().parent.parent.parent
OURS = {*PRODUCT, "support", "tools", "bench"}
"""Top-level names that are this repository's."""

Function = ast.FunctionDef | ast.AsyncFunctionDef
Definition = Function | ast.ClassDef


@dataclass(frozen=True, slots=True, kw_only=True)
class Module:
    """A Python file; `path` is relative to the repository, `name` dotted."""

    path: str
    name: str
    tree: ast.Module


def parsed(path: str, text: str) -> Module:
    """A module of this text; it need not be on disk."""
    return Module(path=path, name=module_name(Path(path)), tree=ast.parse(text, path))


@cache
def product_modules() -> tuple[Module, ...]:
    """Every Python file of the product's packages."""
    return tuple(_read(file) for file in module_files(ROOT).values())


@cache
def modules_of_tests() -> tuple[Module, ...]:
    """Every Python file under tests/."""
    return tuple(_read(file) for file in sorted((ROOT / "tests").rglob("*.py")))


def imported_names(module: Module) -> dict[str, str]:
    """Name in the module -> what an import anywhere in it binds to it, dotted.

    Relative imports are left out.
    """
    bound = dict[str, str]()
    for node in ast.walk(module.tree):
        if isinstance(node, ast.Import):
            bound |= dict(_bound_by_import(one) for one in node.names)
        elif isinstance(node, ast.ImportFrom) and not node.level:
            bound |= {one.asname or one.name: f"{node.module}.{one.name}" for one in node.names}
    return bound


def definitions(tree: ast.Module) -> Iterator[tuple[str, Definition]]:
    """Every class, function and method but those inside functions, with its dotted name."""
    for name, node in _bound(tree.body, ""):
        if isinstance(node, Definition):
            yield name, node


def defined_names(tree: ast.Module) -> set[str]:
    """Dotted names of classes, functions and methods, and of what modules and classes assign."""
    return {name for name, _ in _bound(tree.body, "")}


def is_private(name: str) -> bool:
    """Whether the name begins with an underscore and is not of the form `__x__`."""
    return name.startswith("_") and not (name.startswith("__") and name.endswith("__"))


def _bound_by_import(one: ast.alias) -> tuple[str, str]:
    first = one.name.split(".")[0]
    return (one.asname, one.name) if one.asname else (first, first)


def _bound(body: Iterable[ast.AST], prefix: str) -> Iterator[tuple[str, ast.AST]]:
    """What these statements bind but imports; of an `if` or a `try`, on every way."""
    for node in body:
        match node:
            case ast.FunctionDef(name=name) | ast.AsyncFunctionDef(name=name):
                yield f"{prefix}{name}", node
            case ast.ClassDef(name=name):
                yield f"{prefix}{name}", node
                yield from _bound(node.body, f"{prefix}{name}.")
            case ast.Name(id=name, ctx=ast.Store()):
                yield f"{prefix}{name}", node
            case _:
                yield from _bound(ast.iter_child_nodes(node), prefix)


def _read(file: Path) -> Module:
    return parsed(str(file.relative_to(ROOT)), file.read_text())
