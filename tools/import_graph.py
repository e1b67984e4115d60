"""Which module of the product imports which, read from source: nothing is imported.

An import counts wherever it stands: in a function and under `TYPE_CHECKING` too. Whoever imports
a.b.c imports a and a.b as well, as Python runs their __init__ first.
"""

import ast
from collections.abc import Iterator, Mapping, Set
from pathlib import Path

PRODUCT = (
    *("protocol", "engine", "kvtransfer", "worker"),
    *("router", "prefill_worker", "decode_worker", "controlplane"),
)
"""The product's packages; a checkout need not have all of them."""

Graph = Mapping[str, Set[str]]
"""Importer -> imported, by dotted name."""


def module_files(root: Path) -> dict[str, Path]:
    """Dotted name -> file of every Python module of the product; a package's is its __init__."""
    files = (file for name in PRODUCT for file in sorted((root / name).rglob("*.py")))
    return {module_name(file.relative_to(root)): file for file in files}


def module_name(file: Path) -> str:
    """`a.b` for a/b.py and for a/b/__init__.py; `file` is relative to the repository."""
    parts = file.with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def import_graph(root: Path) -> dict[str, set[str]]:
    """Every module of the product and those of the product that it imports."""
    files = module_files(root)
    return {name: _imported(name, file, files.keys()) for name, file in files.items()}


def import_circles(graph: Graph) -> list[tuple[str, ...]]:
    """Largest sets of two modules or more that all reach each other, each sorted by name."""
    reached = {name: _reached(graph, name) for name in graph}
    circles = {
        tuple(sorted(other for other in reached[name] if name in reached[other])) for name in graph
    }
    return sorted(circle for circle in circles if len(circle) > 1)


def _reached(graph: Graph, start: str) -> set[str]:
    found, waiting = set[str](), [start]
    while waiting:
        new = graph[waiting.pop()] - found
        found |= new
        waiting += new
    return found


def _imported(name: str, file: Path, known: Set[str]) -> set[str]:
    is_package = file.name == "__init__.py"
    wanted = _wanted(ast.parse(file.read_text()), name if is_package else name.rpartition(".")[0])
    return {module for one in wanted for module in _with_packages(one) if module in known} - {name}


def _with_packages(name: str) -> Iterator[str]:
    parts = name.split(".")
    return (".".join(parts[:count]) for count in range(1, len(parts) + 1))


def _wanted(tree: ast.Module, package: str) -> Iterator[str]:
    """Full names; what `from a import b` names may be the module a.b or something in a."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = _base(node, package)
            yield from (f"{base}.{alias.name}" for alias in node.names)


def _base(node: ast.ImportFrom, package: str) -> str:
    """The absolute name of what a `from` names."""
    if not node.level:
        return node.module or ""
    parents = package.split(".")
    kept = parents[: len(parents) - node.level + 1]
    return ".".join([*kept, node.module] if node.module else kept)
