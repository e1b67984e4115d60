"""Lines and functions of one source file, counted from its text.

A line of code is one that is not blank and holds something besides comments, docstrings and
imports. A docstring is any string that stands alone as a statement, so a field's too.
"""

import ast
import io
import tokenize
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

_WITHOUT_CODE = {
    *(tokenize.COMMENT, tokenize.NL, tokenize.NEWLINE),
    *(tokenize.INDENT, tokenize.DEDENT, tokenize.ENDMARKER),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Function:
    """A function or method. A function inside another counts by itself and in the other."""

    place: str  # path:line
    name: str
    num_lines: int  # from `def` to the last line; decorators are not counted


@dataclass(frozen=True, slots=True, kw_only=True)
class SourceFile:
    """A Python or C file; C has no lines of code or functions here."""

    path: str  # from the repository's root
    num_lines: int
    num_code_lines: int = 0
    functions: tuple[Function, ...] = ()


def read_source(root: Path, file: Path) -> SourceFile:
    """Count `file`, which lies under `root`. SyntaxError if it is Python that does not parse."""
    path, text = str(file.relative_to(root)), file.read_text()
    num_lines = len(text.splitlines())
    if file.suffix != ".py":
        return SourceFile(path=path, num_lines=num_lines)
    tree = ast.parse(text, path)
    return SourceFile(
        path=path,
        num_lines=num_lines,
        num_code_lines=len(_code_lines(text) - _silent_lines(tree)),
        functions=tuple(_functions(tree, path)),
    )


def docstrings(tree: ast.AST) -> Iterator[ast.Constant]:
    """Every string that stands alone as a statement."""
    for node in ast.walk(tree):
        match node:
            case ast.Expr(value=ast.Constant(value=str()) as text):
                yield text


def _functions(tree: ast.Module, path: str) -> Iterator[Function]:
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            num_lines = len(_lines(node))
            yield Function(place=f"{path}:{node.lineno}", name=node.name, num_lines=num_lines)


def _code_lines(text: str) -> set[int]:
    """Numbers of the lines that hold more than blanks and comments."""
    tokens = tokenize.generate_tokens(io.StringIO(text).readline)
    spans = (range(t.start[0], t.end[0] + 1) for t in tokens if t.type not in _WITHOUT_CODE)
    filled = {number for number, line in enumerate(text.splitlines(), 1) if line.strip()}
    return {number for span in spans for number in span} & filled


def _silent_lines(tree: ast.Module) -> set[int]:
    """Numbers of the lines of docstrings and imports."""
    imports = (node for node in ast.walk(tree) if isinstance(node, ast.Import | ast.ImportFrom))
    return {number for node in (*imports, *docstrings(tree)) for number in _lines(node)}


def _lines(node: ast.stmt | ast.expr) -> range:
    assert node.end_lineno is not None  # parsed from text
    return range(node.lineno, node.end_lineno + 1)
