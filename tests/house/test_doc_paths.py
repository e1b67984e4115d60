"""Every file that a page names in backticks is there.

A path is read from the repository's root, or from the package that the page is about: so
`docs/engine.md` may say `models/config.py`.
"""

import re
from collections.abc import Iterator
from pathlib import Path

import pytest
from support.source_tree import ROOT

PATH = re.compile(r"`([\w./-]+\.(?:py|c|h|md|yaml|jsonl|png|toml)|[\w./-]+/)(?:#[\w-]+)?`")
ABOUT = {"docs/engine.md": ("engine", "tests/parity"), "docs/transfer.md": ("kvtransfer",)}
"""Page -> folders from which it names files."""
ELSEWHERE: dict[str, str] = {}
"""A name that is no file of ours -> whose it is."""
HISTORY = ("docs/lab.md", "docs/decisions", "CHANGELOG.md")
"""What was true when it was written; its files may have moved since."""


def test_every_file_that_a_page_names_is_there() -> None:
    found = [f"{page}: {path}" for page in _pages() for path in missing(page, ROOT)]
    assert not found, "\n".join(found)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("see `docs/page.md` and `engine/`", []),
        ("see `engine/gone.py`", ["engine/gone.py"]),
        ("`page.md` from nowhere", ["page.md"]),
        ("`engine.loop` is a module, `make test` a command", []),
    ],
)
def test_a_file_that_is_gone_is_found(tmp_path: Path, text: str, expected: list[str]) -> None:
    (tmp_path / "docs").mkdir()
    (tmp_path / "engine").mkdir()
    (tmp_path / "docs/page.md").write_text(text)
    assert list(missing("docs/page.md", tmp_path)) == expected


def missing(page: str, root: Path) -> Iterator[str]:
    folders = [root, *(root / folder for folder in ABOUT.get(page, ()))]
    for found in PATH.finditer((root / page).read_text()):
        path = found.group(1)
        if path not in ELSEWHERE and not any((folder / path).exists() for folder in folders):
            yield path


def _pages() -> list[str]:
    pages = [*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md"), *ROOT.glob("deploy/*.md")]
    named = sorted(str(page.relative_to(ROOT)) for page in pages)
    return [name for name in named if not name.startswith(HISTORY)]
