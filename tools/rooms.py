"""The product's folders and what each says of itself: the docstring of its __init__."""

import ast
import textwrap
from collections.abc import Iterator, Sequence
from pathlib import Path

from tools.import_graph import PRODUCT

SUFFIXES = (".py", ".c", ".h")
MAP_COLUMNS = 115


def folders(root: Path, packages: Sequence[str] = PRODUCT) -> Iterator[Path]:
    """Every folder of the packages that holds source, parents first, in the packages' order."""
    for name in packages:
        files = (file for file in (root / name).rglob("*") if file.suffix in SUFFIXES)
        yield from sorted({file.parent for file in files})


def room_sentences(root: Path) -> dict[str, str]:
    """`a/b/` -> the docstring of its __init__ on one line; empty where there is none."""
    return {f"{folder.relative_to(root)}/": _sentence(folder) for folder in folders(root)}


def map_lines(root: Path) -> list[str]:
    """The list under the heading Rooms of docs/architecture.md."""
    return [
        line
        for folder, sentence in room_sentences(root).items()
        for line in textwrap.wrap(
            f"- `{folder}`: {sentence}",
            MAP_COLUMNS,
            subsequent_indent="  ",
            break_long_words=False,
            break_on_hyphens=False,
        )
    ]


def _sentence(folder: Path) -> str:
    init = folder / "__init__.py"
    text = ast.get_docstring(ast.parse(init.read_text())) if init.exists() else None
    return " ".join((text or "").split())
