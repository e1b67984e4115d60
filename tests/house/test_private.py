"""Tests see what callers see: none reaches into a private member of ours."""

import ast
from collections.abc import Callable, Iterator

import pytest
from support.source_tree import (
    OURS,
    Module,
    imported_names,
    is_private,
    modules_of_tests,
    parsed,
)

ONESELF = {"self", "cls"}
ATTRIBUTE_CALLS = {"setattr", "getattr", "delattr", "hasattr"}


def test_no_test_reaches_into_a_private_member() -> None:
    found = [reach for module in modules_of_tests() for reach in private_reaches(module)]
    assert not found, "\n".join(found)


@pytest.mark.parametrize(
    "text",
    [
        "pool._free",
        "self.pool._free",
        "make()._free",
        "from engine.kv import _free",
        "from engine._kv import pool",
        "import engine._kv",
        "monkeypatch.setattr(pool, '_free', [])",
        "monkeypatch.setattr('engine.kv._free', [])",
        "getattr(pool, '_free')",
    ],
)
def test_a_reach_is_found(text: str) -> None:
    assert len(list(private_reaches(parsed("tests/a.py", text)))) == 1


@pytest.mark.parametrize(
    "text",
    [
        "self._free",
        "cls._free",
        "super()._free()",
        "pool.__class__",
        "import os\nos._exit(0)",
        "import torch\ntorch.ops._c()",
        "from os import _exit",
        "import os\nmonkeypatch.setattr(os, '_exit', print)",
        "monkeypatch.setattr('os._exit', print)",
        "getattr(self, '_free')",
    ],
)
def test_ones_own_members_and_other_peoples_modules_are_no_reach(text: str) -> None:
    assert list(private_reaches(parsed("tests/a.py", text))) == []


def private_reaches(module: Module) -> Iterator[str]:
    """`path:line: source` of every attribute, import and patch of a private name of ours."""
    bound = imported_names(module)
    foreign = {name for name, full in bound.items() if full.split(".")[0] not in OURS}
    for node in ast.walk(module.tree):
        if any(is_reach(node, foreign) for is_reach in REACHES):
            assert isinstance(node, ast.expr | ast.stmt)
            yield f"{module.path}:{node.lineno}: {ast.unparse(node)}"


def _is_attribute(node: ast.AST, foreign: set[str]) -> bool:
    match node:
        case ast.Attribute(value=owner, attr=name):
            return is_private(name) and not _is_exempt(owner, foreign)
        case _:
            return False


def _is_import(node: ast.AST, foreign: set[str]) -> bool:
    match node:
        case ast.ImportFrom(module=str(source), names=names):
            return any(_is_private_path(f"{source}.{one.name}") for one in names)
        case ast.Import(names=names):
            return any(_is_private_path(one.name) for one in names)
        case _:
            return False


def _is_patch(node: ast.AST, foreign: set[str]) -> bool:
    match node:
        case ast.Call(func=ast.Name(id=name) | ast.Attribute(attr=name), args=[target, *rest]):
            return name in ATTRIBUTE_CALLS and _is_private_target(target, rest, foreign)
        case _:
            return False


REACHES: tuple[Callable[[ast.AST, set[str]], bool], ...] = (_is_attribute, _is_import, _is_patch)


def _is_private_target(target: ast.expr, rest: list[ast.expr], foreign: set[str]) -> bool:
    match target, rest:
        case ast.Constant(value=str(path)), _:
            return _is_private_path(path)
        case owner, [ast.Constant(value=str(name)), *_]:
            return is_private(name) and not _is_exempt(owner, foreign)
        case _:
            return False


def _is_private_path(path: str) -> bool:
    first, *others = path.split(".")
    return first in OURS and any(is_private(name) for name in others)


def _is_exempt(owner: ast.expr, foreign: set[str]) -> bool:
    """Whether the owner is oneself or lies in a module of other people."""
    match owner:
        case ast.Name(id=name):
            return name in ONESELF | foreign
        case ast.Call(func=ast.Name(id="super")):
            return True
        case ast.Attribute(value=value):
            return not _is_oneself(value) and _is_exempt(value, foreign)
        case _:
            return False


def _is_oneself(owner: ast.expr) -> bool:
    return isinstance(owner, ast.Name) and owner.id in ONESELF
